"""D6: the recipe run again on rows of the seed that the reviewer's system draws: captions that no recipe
made, and rows that were chosen by hand and given reasons, are found by what the recipe really does.

Run with --deep, like a rebuild in an environment without keys, and only of operators that compute (D5). A
limit that depends on all rows is the number that the record says it came to. Selectors are left out, and what
they removed is not judged.
"""

import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.bundle.checks.inputs import folder_of
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.bundle.rebuild import ROOT, environment
from toolkit.bundle.sandbox import Limits, bound
from toolkit.data.engine.thresholds import FORMS
from toolkit.data.recipe import WHERE
from toolkit.data.samples import read_lines, row_problem
from toolkit.errors import UserError
from toolkit.files import write_json, write_text

ROWS = 200
ROUNDED = 0.03  # largest share of rows that another machine's rounding may change
EXACT = ("document_deduplicator", "image_deduplicator")  # equal hashes: both rows in the sample suffice
# a recipe can make texts without end: bytes that it may take, and so many times those of its models
SECONDS, MEMORY, COPIES = 600, 2 << 30, 4
FOLDER = "output/replay"


def alone(process: list[dict[str, Any]], funnel: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps whose result for a row needs no others: selectors are left out, a limit that follows from all
    rows is the number that it came to in `funnel`. UserError where none is stated."""
    steps = []
    for step, done in zip(process, funnel[1:-1], strict=True):
        ((name, arguments),) = step.items()
        if not name.endswith("_selector"):
            steps.append({name: {key: _number(key, value, done) for key, value in arguments.items()}})
    return steps


def _number(key: str, value: Any, done: dict[str, Any]) -> Any:
    """An argument of a step, with the numbers of its entry in the funnel in place of limits that follow from
    all rows."""
    if not isinstance(value, dict):
        return value
    try:
        if key == WHERE:
            return {
                name: {
                    side: done[WHERE][name][side] if isinstance(limit, dict) else limit
                    for side, limit in limits.items()
                }
                for name, limits in value.items()
            }
        return done["limits"][key] if value.keys() & FORMS.keys() else value
    except KeyError:
        message = f"results.funnel does not say what {key} of {done['operator']} came to"
        raise UserError(f"{message}: synthesize again") from None


def replayed(entry: Entry, folder: Path, seed: int, remarks: list[str]) -> Iterator[Finding]:
    """D6 for a recipe that can be run on single rows; `folder`: an empty one."""
    record = entry.record("data")
    steps = alone(record.settings["process"], record.results["funnel"])
    images = folder_of(entry, record.settings["images"]["path"])
    models = {role: folder_of(entry, model["path"]) for role, model in record.settings["models"].items()}
    lines = {
        number: (line, row)
        for number, line, row, _ in read_lines(entry.path(record.inputs["samples"].path))
        if not row_problem(row)
    }
    removed = {row["id"]: row for _, _, row, _ in entry.lines(f"{entry.data}/removed.jsonl")}
    judged = random.Random(f"{seed} rows").sample(sorted(lines), min(ROWS, len(lines)))
    ids = {lines[number][1]["id"] for number in judged}
    partners = {
        removed[name]["of"] for name in ids & removed.keys() if isinstance(removed[name].get("of"), str)
    }
    sample = [line for _, (line, row) in sorted(lines.items()) if row["id"] in ids | partners]
    again_kept, again_removed = _run(entry, folder, steps, sample, images, models)
    kept: dict[str, list[str]] = defaultdict(list)
    for _, _, row, _ in entry.lines(f"{entry.data}/processed_data.jsonl"):
        kept[row["id"]].append(row["text"])
    operators = {name: row.get("operator") for name, row in removed.items()}
    names = {name for step in steps for name in step}
    problems = list(differences(sorted(ids), kept, operators, again_kept, again_removed, names))
    remarks.append(
        f"D6: {len(ids) - len(problems)} of {len(ids)} rows come out of the recipe as packed (seed {seed})"
    )
    if len(problems) > ROUNDED * len(ids):
        message = f"{len(problems)} of {len(ids)} rows are not what the recipe makes: {problems[0]}"
        yield Finding("D6", f"{entry.data}/processed_data.jsonl", message, "synthesize again")


def differences(
    ids: list[str],
    kept: Mapping[str, list[str]],
    removed: Mapping[str, Any],
    again_kept: Mapping[str, list[str]],
    again_removed: Mapping[str, Any],
    steps: set[str],
) -> Iterator[str]:
    """A sentence for each row that did not come out as it is packed. removed: the operator by id."""
    for name in ids:
        if name in kept:
            if name in again_removed and name not in again_kept:
                yield f"{name} is kept, {again_removed[name]} removes it"
            elif sorted(kept[name]) != sorted(again_kept.get(name, [])):
                caption = again_kept.get(name, [""])[0]
                yield f"the caption of {name} is {kept[name][0]!r}, the recipe makes {caption!r}"
        elif (operator := removed.get(name)) in steps | {"read", "result"}:
            unsure = str(operator).endswith("_deduplicator") and operator not in EXACT
            if not unsure and again_removed.get(name) != operator:
                yield f"{name} was removed by {operator}, which does not remove it"


def _run(
    entry: Entry,
    folder: Path,
    steps: list[dict[str, Any]],
    sample: list[str],
    images: Path,
    models: Mapping[str, Path],
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Texts kept and operators that removed, by id; UserError when the recipe fails."""
    import torch

    for name in entry.names("solution/**/*"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.path(name).read_bytes())
    # JSON is YAML
    write_json(folder / "recipe.yaml", {"project_name": "replay", "process": steps})
    write_text(folder / "samples.jsonl", "".join(f"{line.rstrip()}\n" for line in sample))
    command = [sys.executable, "-m", "toolkit", "data", "synthesize", "--recipe", "recipe.yaml"]
    command += ["--samples", "samples.jsonl", "--images", str(images), "--processes", "1"]
    command += [f"--model={role}={path}" for role, path in models.items()]
    command += ["--scores", f"{FOLDER}/scores", "--output", f"{FOLDER}/kept.jsonl"]
    command += ["--removed", f"{FOLDER}/removed.jsonl", "--record", f"{FOLDER}/run.json"]
    # stacks of a thread for each of many cores would count as memory
    variables = environment(folder) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    weights = sum(path.stat().st_size for model in models.values() for path in model.rglob("*.*"))
    # a process that uses a GPU reserves what it may never need
    limits = Limits.of(folder, SECONDS / 3600, None, None)
    if not torch.cuda.is_available():
        limits = replace(limits, memory=MEMORY + COPIES * weights)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            preexec_fn=lambda: bound(limits),
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"the recipe took more than {SECONDS} s for {len(sample)} rows") from None
    if done.returncode and not (folder / FOLDER / "removed.jsonl").is_file():
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"the recipe cannot be run on {len(sample)} rows of the seed: {said}")
    kept: dict[str, list[str]] = defaultdict(list)
    if (folder / FOLDER / "kept.jsonl").is_file():
        for _, _, row, _ in read_lines(folder / FOLDER / "kept.jsonl"):
            kept[row["id"]].append(row["text"])
    removed = {row["id"]: row["operator"] for _, _, row, _ in read_lines(folder / FOLDER / "removed.jsonl")}
    return kept, removed
