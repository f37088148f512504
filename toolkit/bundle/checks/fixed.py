"""T2: what nobody may change is unchanged: hyper-parameters, the kit's files, the commands.

Training and evaluation run from this toolkit, not from scripts in the entry. So there are three things to
compare: the scale that the records name with the rules' own copy of the contest's numbers, files of the kit
that an entry carries with their hashes, and train.sh with what the records say was run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import PurePosixPath

from toolkit.benchmarks import BENCHMARKS
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import WARNING, Finding
from toolkit.bundle.papers.train_script import script
from toolkit.contest.ruleset import Numbers, Sizes
from toolkit.scales import Stage

BLOCK_ENDS = b"Editable Part Ends"


def unchanged(entry: Entry) -> Iterator[Finding]:
    """T2."""
    yield from numbers(entry)
    for name in entry.members():
        base = PurePosixPath(name).name
        remedy = "put the kit's own file there, or leave it out: nothing here runs it"
        if base in entry.rules.fixed_files and entry.sha256(name) != entry.rules.fixed_files[base]:
            yield Finding("T2", name, f"is not the kit's {base}", remedy)
        elif base in entry.rules.fixed_parts:
            with entry.open(name) as handle:
                below = handle.read().partition(BLOCK_ENDS)[2].partition(b"\n")[2]
            if hashlib.sha256(below).hexdigest() != entry.rules.fixed_parts[base]:
                yield Finding("T2", name, f"differs from the kit's {base} outside the editable block", remedy)
    with entry.open("output/train.sh") as handle:
        lines = handle.read().decode("utf-8", errors="replace").split("\n")
    for number, (line, expected) in enumerate(zip_longest(lines, script(entry).split("\n")), start=1):
        if line != expected:
            message = "is not what the records say was run"
            yield Finding("T2", "output/train.sh", message, "snakemake --force output/train.sh", line=number)
            break
    code = {entry.json(file).get("code") for file in entry.record_files.values()}
    if len(code) > 1:
        message = f"the stages were made by {len(code)} versions of the toolkit's code"
        yield Finding(
            "T2", entry.record_files["data"], message, "snakemake --forceall submit.zip", severity=WARNING
        )


def numbers(entry: Entry) -> Iterator[Finding]:
    """T2: the scale and the records have the rules' numbers, the questions end as the official script has
    it."""
    for benchmark in entry.rules.answers:
        record, official = entry.record(benchmark), BENCHMARKS[benchmark].instruction
        if (prompt := record.settings.get("prompt")) != official:
            message = f"the questions end with {prompt!r}, the official script has {official!r}"
            yield Finding("T2", record.file, message, "evaluate without a prompt of your own")
    fixed, scale = entry.rules.fixed, entry.scale
    stages = [("pretrain", fixed.pretrain, scale.pretrain)]
    if entry.division in fixed.finetune and entry.division in scale.finetune:
        stages.append(("finetune", fixed.finetune[entry.division], scale.finetune[entry.division]))
    remedy = "train with the contest's own number"
    compared = [("template", scale.template, fixed.template)]
    compared += [(key, getattr(scale, key), getattr(fixed, key)) for key in Sizes.model_fields]
    if scale.first_stage or fixed.first_stage:
        first, rules = scale.sight(scale.pretrain), fixed.sizes("pretrain")
        compared += [
            (f"{key} of the first stage", getattr(first, key), getattr(rules, key))
            for key in Sizes.model_fields
        ]
    for what, value, expected in compared:
        if value != expected:
            message = f"{what} of scale {scale.name} is {value}, the rules fix {expected}"
            yield Finding("T2", entry.record_files["pretrain"], message, remedy)
    for name, numbers, stage in stages:
        yield from _stage(entry, name, numbers, stage, remedy)
    yield from _configurations(entry, {name: numbers for name, numbers, _ in stages})


def _configurations(entry: Entry, stages: Mapping[str, Numbers]) -> Iterator[Finding]:
    """What both stages left as the model's configuration has the rules' numbers, and is of one model."""
    fixed, remedy = entry.rules.fixed, "train again: the training writes it"
    folders = {"pretrain": entry.pretrain, "finetune": entry.finetune}
    files = {name: f"{folders[name]}/config.json" for name in stages}
    read = {name: entry.json(file) for name, file in files.items() if entry.exists(file)}
    for name, values in read.items():
        sizes = fixed.sizes(name).model_dump(include=set(Sizes.model_fields))
        sizes["tokenizer_model_max_length"] = sizes.pop("model_max_length")
        expected = sizes | {"image_aspect_ratio": stages[name].image_aspect_ratio}
        for key, value in expected.items():
            if values.get(key, value) != value:
                message = f"{key} is {values[key]}, the rules fix {value}"
                yield Finding("T2", files[name], message, remedy)
    if len(read) == 2:
        first, second = read.values()
        keys = (first.keys() | second.keys()) - {*expected, "torch_dtype"}  # each has its own
        if differing := sorted(key for key in keys if first.get(key) != second.get(key)):
            message = f"is of another model than {files['finetune']}: {', '.join(differing)}"
            yield Finding("T2", files["pretrain"], message, remedy)


def _stage(entry: Entry, name: str, numbers: Numbers, stage: Stage, remedy: str) -> Iterator[Finding]:
    record = entry.record(name)
    for key, value in numbers.model_dump().items():
        # not every number is in the record; the scale has all
        recorded = record.settings.get(key, getattr(stage, key))
        for source, actual in (("the record", recorded), (f"scale {entry.scale.name}", getattr(stage, key))):
            if actual != value:
                message = f"{key} of {source} is {actual}, division {entry.division} fixes {value}"
                yield Finding("T2", record.file, message, remedy)
                break
