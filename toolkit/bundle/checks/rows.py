"""D1 to D5: the training rows can be trained on, came out of the recipe, and were synthesized; the recipes
compute and do nothing else."""

import posixpath
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from toolkit.bundle.checks.inputs import files_of, folder_of
from toolkit.bundle.checks.inside import left_out
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import WARNING, Finding
from toolkit.bundle.papers.train_script import asset_file
from toolkit.config.records import Contamination
from toolkit.contest.records import File, Record
from toolkit.counted import counted
from toolkit.data.convert import convert, read_questions
from toolkit.data.recipe.allowed import IMAGE_MAKERS, problems
from toolkit.data.samples import HASH, SYNTHETIC, caption_of, inspect_images, read_lines, row_problem
from toolkit.errors import UserError
from toolkit.evaluate.contamination import LIMITS, contamination
from toolkit.files import read_yaml, sha256, write_jsonl
from toolkit.processes import cores

LOOKED_AT = 1000  # images that a recipe made, of which local features are compared: 14 ms each
RECIPES = 1 << 20  # bytes of all recipes' files that are read: YAML is slow, and a recipe has some 4 kB


def valid(entry: Entry) -> Iterator[Finding]:
    """D1: every row is whole, its image exists, llava.json is their conversion."""
    yield from _synthesized_images(entry)
    record = entry.record("data")
    samples = f"{entry.data}/processed_data.jsonl"
    original = entry.path(asset_file(record.inputs["samples"], "original"))
    images = record.settings["images"]["path"]
    originals, has_problem = read_questions(original), False
    for number, _, row, malformed in entry.lines(samples):
        problem = malformed or row_problem(row)
        if not problem and row["id"] not in originals:
            problem = f"id {row['id']} is not in {original.name}"
        if (
            not problem
            and not _is_synthetic(row["images"][0])
            and not entry.exists(f"{images}/{row['images'][0]}")
        ):
            problem = f"missing image {row['images'][0]}"
        if problem:
            has_problem = True
            yield Finding("D1", samples, problem, "repair the recipe and synthesize again", line=number)
    if not has_problem:
        yield from _converted(entry, samples, original)


def _synthesized_images(entry: Entry) -> Iterator[Finding]:
    """Images that the recipe made are those that the rows name: each is called by its bytes, none is missing
    or left over."""
    used, remedy = _synthetic_paths(entry), "synthesize again"
    packed = entry.names(f"{entry.data}/{SYNTHETIC}/**/*")
    operators = {name for step in entry.record("data").settings["process"] for name in step}
    if (used or packed) and not operators & IMAGE_MAKERS:
        message = f"no operator of the recipe makes images, {len({*used, *packed})} are there"
        yield Finding("D1", (used or packed)[0], message, f"use one of {', '.join(sorted(IMAGE_MAKERS))}")
    for name in packed:
        if PurePosixPath(name).stem != entry.sha256(name)[:HASH]:
            yield Finding("D1", name, "is not the image that was made: its name is not its SHA-256", remedy)
        elif name not in used:
            yield Finding("D1", name, "no row uses this image", remedy)
    for name in used:
        if not entry.exists(name) and not entry.outside(name):
            yield Finding("D1", name, "a row uses this image, it is not there", remedy)


def _is_synthetic(image: str) -> bool:
    return image.startswith(f"{SYNTHETIC}/")


def _synthetic_paths(entry: Entry) -> list[str]:
    """Files of the images in the rows that the recipe made, each once."""
    rows = (row for _, _, row, _ in entry.lines(f"{entry.data}/processed_data.jsonl") if not row_problem(row))
    images = (row["images"][0] for row in rows)
    return list(dict.fromkeys(f"{entry.data}/{image}" for image in images if _is_synthetic(image)))


def _converted(entry: Entry, samples: str, original: Path) -> Iterator[Finding]:
    """llava.json is what the conversion makes of the rows, byte for byte."""
    file = f"{entry.data}/llava.json"
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "llava.json"
        convert(entry.path(samples), original, expected, entry.scale.cap, entry.scale.question_tokens)
        if sha256(expected) != entry.sha256(file):
            message = f"is not the conversion of {samples} with the cap {entry.scale.cap}"
            yield Finding("D1", file, message, f"snakemake --force {file}")


def synthesized(entry: Entry) -> Iterator[Finding]:
    """D2: the recipe has an operator that makes captions or images, and there are captions other than the
    seed's or images beside them."""
    if not entry.rules.synthesis:
        return
    record = entry.record("data")
    remedy = f"submit an experiment whose recipe has one of: {', '.join(entry.rules.synthesis)}"
    operators = [name for step in record.settings["process"] for name in step]
    yield from _recipe(entry, record)
    if not set(operators) & set(entry.rules.synthesis):
        yield Finding(
            "D2", record.file, f"the recipe ({', '.join(operators) or 'empty'}) has no synthesis step", remedy
        )
    seed: dict[str, str] = {}
    images: dict[str, str] = {}
    for _, _, row, _ in read_lines(entry.path(record.inputs["samples"].path)):
        if not row_problem(row):
            seed[row["id"]], images[row["id"]] = caption_of(row["text"]), posixpath.normpath(row["images"][0])
    rows = [row for _, _, row, _ in entry.lines(f"{entry.data}/processed_data.jsonl") if not row_problem(row)]
    for row in rows:
        if not _is_synthetic(row["images"][0]) and row["images"][0] != images.get(row["id"]):
            message = (
                f"the row {row['id']} has the image {row['images'][0]}, in the seed {images.get(row['id'])}"
            )
            yield Finding("D2", f"{entry.data}/processed_data.jsonl", message, "synthesize again")
            break
    changed = sum(caption_of(row["text"]) != seed.get(row["id"]) for row in rows)
    if changed == 0 and not _synthetic_paths(entry):
        message = "no caption differs from the seed's and no image was made: nothing was synthesized"
        yield Finding("D2", f"{entry.data}/processed_data.jsonl", message, remedy)
    if record.results["captions_changed"] != changed:
        message = (
            f"results.captions_changed is {record.results['captions_changed']}, the files have {changed}"
        )
        yield Finding("D2", record.file, message, f"snakemake --force {record.file}")


def compared(entry: Entry) -> Iterator[Finding]:
    """D2 of a run whose rows are not packed: its steps are those of its recipe, its numbers agree, and where
    there is no step it was trained on the seed's rows."""
    record = entry.record("data")
    again = f"snakemake --force {record.file}"
    yield from _recipe(entry, record)
    steps = [name for step in record.settings["process"] for name in step]
    if problem := funnel_problem(record, steps, record.results["removed_by"]):
        yield Finding("D3", record.file, f"results.funnel {problem}", again)
    if not steps:
        pretrain = entry.record("pretrain")
        stated = pretrain.results["rows"], pretrain.inputs["samples"].sha256
        if stated != _raw(entry, record):
            message = f"was not trained on all rows of the seed, though {record.file} has no step"
            yield Finding("D1", pretrain.file, message, again)


def _raw(entry: Entry, record: Record) -> tuple[int, str]:
    """Number and SHA-256 of the training rows that a recipe without steps makes of the seed."""
    samples = entry.path(record.inputs["samples"].path)
    rows = {row["id"]: row for _, _, row, _ in reversed([*read_lines(samples)]) if not row_problem(row)}
    rows = dict(reversed(rows.items()))  # of two rows of one id the first counts, at its place
    for row in rows.values():
        row["images"] = [posixpath.normpath(row["images"][0])]
    if len(rows) != record.results["kept"]:
        folder = folder_of(entry, record.settings["images"]["path"])
        inspected = inspect_images([folder / row["images"][0] for row in rows.values()], cores())
        rows = {name: row for (name, row), image in zip(rows.items(), inspected, strict=True) if not image[0]}
    with tempfile.TemporaryDirectory() as name:
        kept, trained = Path(name) / "kept.jsonl", Path(name) / "llava.json"
        write_jsonl(kept, rows.values())
        original = entry.path(asset_file(record.inputs["samples"], "original"))
        try:
            count, _ = convert(kept, original, trained, entry.scale.cap, entry.scale.question_tokens)
        except UserError as error:
            raise UserError(str(error).replace(f"{kept}", record.inputs["samples"].path)) from None
        return count, sha256(trained)


def _recipe(entry: Entry, record: Record) -> Iterator[Finding]:
    """The record's steps are those of its recipe."""
    recipe = record.inputs["recipe"].path
    if _process(entry, recipe) != record.settings["process"]:
        message = f"settings.process is not what {recipe} says"
        yield Finding("D2", record.file, message, f"snakemake --force {record.file}")


def _process(entry: Entry, recipe: str) -> list[dict]:
    """The operators of a recipe's file with their arguments, as the record has them."""
    steps = (
        {step: None} if isinstance(step, str) else step for step in read_yaml(entry.path(recipe))["process"]
    )
    return [{name: arguments or {} for name, arguments in step.items()} for step in steps]


def allowed(entry: Entry) -> Iterator[Finding]:
    """D5: no recipe, also of another experiment, names an operator or an argument that could run, install or
    load what it likes."""
    names = entry.names("solution/recipes/*.yaml")
    if (size := sum(map(entry.length, names))) > RECIPES:
        message = f"the recipes have {size} bytes together, at most {RECIPES} are read"
        yield Finding("D5", names[0], message, "leave out what is not used")
        return
    for name in names:
        try:
            recipe = read_yaml(entry.path(name))
        except UserError as error:
            yield Finding("D5", name, str(error), "repair the recipe")
            continue
        process = recipe.get("process") if isinstance(recipe, dict) else None
        for problem in (
            problems(process)
            if isinstance(process, list)
            else ["has no list of operators under the key process"]
        ):
            yield Finding("D5", name, problem, "use operators and arguments that compute and do nothing else")


def counts(entry: Entry) -> Iterator[Finding]:
    """D3: the rows kept and those quarantined or removed make the rows read, each with a reason and a step of
    the recipe, and the record says so."""
    record = entry.record("data")
    samples, removed = f"{entry.data}/processed_data.jsonl", f"{entry.data}/removed.jsonl"
    again = f"snakemake --force {record.file}"
    steps = [name for step in record.settings["process"] for name in step]
    rows, ids = 0, set()
    removed_by: Counter[str] = Counter()
    for rows, (_, _, row, _) in enumerate(entry.lines(samples), start=1):  # noqa: B007
        ids.add(row.get("id") if isinstance(row, dict) else None)
    for number, _, row, malformed in entry.lines(removed):
        if malformed or not isinstance(row, dict) or not row.get("reason"):
            yield Finding("D3", removed, malformed or "a removed row has no reason", again, line=number)
        else:
            removed_by[str(row.get("operator"))] += 1
    if strange := removed_by.keys() - {*steps, "read", "result"}:
        message = f"the recipe does not have {', '.join(sorted(strange))}, which removed rows"
        yield Finding("D3", removed, message, again)
    quarantined, removed_rows = left_out(entry)
    if problem := funnel_problem(record, steps, removed_by):
        yield Finding("D3", record.file, f"results.funnel {problem}", again)
    seed = {
        number: row.get("id") if isinstance(row, dict) else None
        for number, _, row, _ in read_lines(entry.path(record.inputs["samples"].path))
    }
    counts = {
        "read": len(seed),
        "kept": len(ids),
        "removed": removed_rows,
        "quarantined": quarantined,
        "rows_written": rows,
        "removed_by": dict(removed_by),
    }
    for key, value in counts.items():
        if record.results.get(key) != value:
            message = f"results.{key} is {record.results.get(key)}, the files have {value}"
            yield Finding("D3", record.file, message, again)
    if len(ids) + removed_rows + quarantined != len(seed):
        message = (
            f"{counted(len(ids), 'row')} kept, {removed_rows} removed and {quarantined} quarantined do not "
            f"make the {counted(len(seed), 'row')} of the seed"
        )
        yield Finding("D3", removed, message, again)
    for number, _, row, _ in entry.lines(removed):
        line = row.get("line") if isinstance(row, dict) else None
        if line not in seed or seed[line] != row.get("id"):
            message = f"line {line} of the seed has another id, or was removed before"
            yield Finding("D3", removed, message, again, line=number)
            break
        del seed[line]
    else:
        if lost := set(seed.values()) ^ ids:
            yield Finding("D3", samples, f"{len(lost)} ids are neither kept nor removed, or both", again)


def funnel_problem(record: Record, steps: list[str], removed_by: Mapping[str, int]) -> str | None:
    """What in the funnel does not follow from the recipe and the numbers of rows, as a phrase."""
    results, funnel = record.results, record.results["funnel"]
    if [step["operator"] for step in funnel] != ["read", *steps, "result"]:
        return f"does not have the steps of the recipe: read, {', '.join(steps)}, result"
    ends = [funnel[0]["in"], funnel[0]["out"], funnel[-1]["out"]]
    if ends != [results["read"], results["read"] - results["quarantined"], results["rows_written"]]:
        return f"begins and ends with {ends}, which are not the rows read, readable and written"
    for before, step in pairwise(funnel):
        if step["in"] != before["out"]:
            return (
                f"has {before['out']} rows after {before['operator']}, {step['in']} before {step['operator']}"
            )
    if any(step["out"] > step["in"] for step in funnel) or any(
        name.endswith("_mapper") for name in removed_by
    ):
        return None  # of several rows that a mapper made of one, some may be gone
    lost = Counter[str]()
    for step in funnel:
        lost[step["operator"]] += step["in"] - step["out"]
    for operator, count in lost.items():
        if count != removed_by.get(operator, 0):
            return f"loses {counted(count, 'row')} in {operator}, {removed_by.get(operator, 0)} are listed"
    return None


def uncontaminated(entry: Entry) -> Iterator[Finding]:
    """D4: the rows were compared with the benchmarks that were answered, and none is a near-duplicate of an
    item."""
    file = f"{entry.data}/contamination.json"
    again = f"snakemake --force {file}"
    try:
        document = Contamination.model_validate(entry.json(file))
    except ValidationError as error:
        yield Finding("P2", file, f"is not what the comparison writes: {' '.join(str(error).split())}", again)
        return
    # D4 may be excepted: what it covers is the pairs that are listed, not another comparison
    if document.limits.model_dump() != LIMITS:
        yield Finding("P2", file, "was made with other limits than the toolkit's", again)
    compared = _evaluated(entry) | {"samples": entry.record("data").outputs["processed_data"]}
    for name, item in compared.items():
        if name not in document.inputs or document.inputs[name].sha256 != item.sha256:
            yield Finding("P1", file, f"was made from other {name} than {item.path}", again)
    if document.found:
        first = document.found[0]
        message = (
            f"{len(document.found)} near-duplicates of evaluation items, the first is {first.kind} "
            f"{first.training}, like {first.evaluation}"
        )
        yield Finding("D4", file, message, "take these rows out and build again")


def _evaluated(entry: Entry) -> dict[str, File]:
    """The files of the benchmarks that the rows are compared with, as the evaluation's records name them."""
    return {
        name: entry.record(benchmark).inputs[name]
        for benchmark, answered in entry.benchmarks.items()
        for name in answered.files
    }


def compared_again(entry: Entry) -> Iterator[Finding]:
    """D4 for an archive whose seed and benchmarks are at hand: the comparison repeated."""
    file = f"{entry.data}/contamination.json"
    evaluation = {benchmark: files_of(entry, benchmark) for benchmark in entry.benchmarks}
    images = folder_of(entry, entry.record("data").settings["images"]["path"])
    # copies beside the rows
    synthetic = {name.removeprefix(f"{entry.data}/"): entry.path(name) for name in _synthetic_paths(entry)}
    result = contamination(
        entry.path(f"{entry.data}/processed_data.jsonl"), images, evaluation, threads=cores()
    )
    document = entry.json(file)
    if differing := [key for key in ("images", "compared", "found") if document.get(key) != result[key]]:
        message = f"says something else than is found here: {', '.join(differing)}"
        yield Finding("D4", file, message, f"snakemake --force {file}")
    if synthetic:  # all others are the seed's
        from toolkit.evaluate.look_alikes import look_alikes

        drawn = random.SystemRandom().sample(sorted(synthetic), min(LOOKED_AT, len(synthetic)))
        looked_at = {name: synthetic[name] for name in sorted(drawn)}
        for pair in look_alikes(looked_at, evaluation, result["found"], threads=cores()):
            message = f"may show what {pair.evaluation} shows: cropped, mirrored, turned or framed"
            remedy = "look at both: the score of a model that was trained on its test says nothing"
            yield Finding("D4", f"{entry.data}/{pair.training}", message, remedy, severity=WARNING)
