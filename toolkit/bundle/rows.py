"""D1, D2, D3: the training rows can be trained on, came out of the recipe, and were synthesized."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.bundle.inside import left_out
from toolkit.bundle.train_script import asset_file
from toolkit.data.convert import convert, read_questions
from toolkit.data.samples import caption_of, read_lines, row_problem
from toolkit.files import sha256


def valid(entry: Entry) -> Iterator[Finding]:
    """D1: every row is whole, its image exists, llava.json is their conversion."""
    record = entry.record("data")
    samples = f"{entry.data}/processed_data.jsonl"
    original = entry.path(asset_file(record.inputs["samples"], "original"))
    images = record.settings["images"]["path"]
    known, broken = read_questions(original), False
    for number, _, row, malformed in read_lines(entry.path(samples)):
        problem = malformed or row_problem(row)
        if not problem and row["id"] not in known:
            problem = f"id {row['id']} is not in {original.name}"
        if not problem and not entry.exists(f"{images}/{row['images'][0]}"):
            problem = f"missing image {row['images'][0]}"
        if problem:
            broken = True
            yield Finding("D1", samples, problem, "mend the recipe and synthesize again", line=number)
    if not broken:
        yield from _converted(entry, samples, original)


def _converted(entry: Entry, samples: str, original: Path) -> Iterator[Finding]:
    """llava.json is what the conversion makes of the rows, byte for byte."""
    file = f"{entry.data}/llava.json"
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "llava.json"
        convert(entry.path(samples), original, expected, entry.scale.cap)
        if sha256(expected) != entry.sha256(file):
            yield Finding("D1", file, f"is not the conversion of {samples} with the cap {entry.scale.cap}", f"snakemake --force {file}")


def synthesized(entry: Entry) -> Iterator[Finding]:
    """D2: the recipe has an operator that makes captions or images, and captions differ from the seed's."""
    if not entry.rules.synthesis:
        return
    record = entry.record("data")
    remedy = f"submit an experiment whose recipe has one of: {', '.join(entry.rules.synthesis)}"
    operators = [name for step in record.settings["process"] for name in step]
    if not set(operators) & set(entry.rules.synthesis):
        yield Finding("D2", record.file, f"the recipe ({', '.join(operators) or 'empty'}) has no synthesis step", remedy)
    seed = {
        row["id"]: caption_of(row["text"]) for _, _, row, _ in read_lines(entry.path(record.inputs["samples"].path)) if not row_problem(row)
    }
    rows = [row for _, _, row, _ in read_lines(entry.path(f"{entry.data}/processed_data.jsonl")) if not row_problem(row)]
    changed = sum(caption_of(row["text"]) != seed.get(row["id"]) for row in rows)
    if changed == 0:
        yield Finding("D2", f"{entry.data}/processed_data.jsonl", "no caption differs from the seed's: nothing was synthesized", remedy)
    if record.results["captions_changed"] != changed:
        message = f"results.captions_changed is {record.results['captions_changed']}, the files have {changed}"
        yield Finding("D2", record.file, message, f"snakemake --force {record.file}")


def counted(entry: Entry) -> Iterator[Finding]:
    """D3: the rows kept and those set aside or removed make the rows read, each with a reason, and the record says so."""
    record = entry.record("data")
    samples, removed = f"{entry.data}/processed_data.jsonl", f"{entry.data}/removed.jsonl"
    again = f"snakemake --force {record.file}"
    rows, ids = 0, set()
    for rows, (_, _, row, _) in enumerate(read_lines(entry.path(samples)), start=1):  # noqa: B007
        ids.add(row.get("id") if isinstance(row, dict) else None)
    for number, _, row, malformed in read_lines(entry.path(removed)):
        if malformed or not isinstance(row, dict) or not row.get("reason"):
            yield Finding("D3", removed, malformed or "a removed row has no reason", again, line=number)
    aside, gone = left_out(entry)
    read = sum(1 for _ in read_lines(entry.path(record.inputs["samples"].path)))
    counts = {"read": read, "kept": len(ids), "removed": gone, "quarantined": aside, "rows_written": rows}
    for key, value in counts.items():
        if record.results.get(key) != value:
            yield Finding("D3", record.file, f"results.{key} is {record.results.get(key)}, the files have {value}", again)
    if len(ids) + gone + aside != read:
        message = f"{len(ids)} rows kept, {gone} removed and {aside} set aside do not make the {read} rows of the seed"
        yield Finding("D3", removed, message, again)
