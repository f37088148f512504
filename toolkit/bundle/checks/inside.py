"""What follows from the archive alone, for the checks that need inputs which are not at hand (D1, E1, E3).

The seed, the questions and the human answers are not packed. Without them a score cannot be recomputed in
full, but answers, scores, tables and rows must still agree with each other.
"""

import math
from collections import Counter
from collections.abc import Iterator

from toolkit.bundle.checks.answers import AGAIN, _markers, restated, stated, unlike
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.counted import counted
from toolkit.data.convert import clean
from toolkit.data.samples import row_problem
from toolkit.evaluate.answer_file import answer_id


def samples(entry: Entry) -> Iterator[Finding]:
    """D1: each row is whole, the counts are the files', llava.json has the rows' captions."""
    record = entry.record("data")
    again = f"snakemake --force {record.file}"
    file = f"{entry.data}/processed_data.jsonl"
    rows: Counter[tuple[str, str]] = Counter()
    count = 0
    for count, (number, _, row, malformed) in enumerate(entry.lines(file), start=1):  # noqa: B007
        problem = malformed or row_problem(row)
        if problem:
            yield Finding("D1", file, problem, "repair the recipe and synthesize again", line=number)
        else:
            rows[row["id"], clean(row["text"])] += 1
    rows_kept = len({row_id for row_id, _ in rows})
    quarantined, removed = left_out(entry)
    expected = {
        "read": rows_kept + quarantined + removed,
        "kept": rows_kept,
        "removed": removed,
        "quarantined": quarantined,
        "rows_written": count,
    }
    recorded = {key: record.results.get(key) for key in expected}
    if recorded != expected:
        message = (
            f"the files have {counted(rows_kept, 'id')} in {counted(count, 'row')}, {removed} removed and "
            f"{quarantined} quarantined, the record says {recorded}"
        )
        yield Finding("D1", record.file, message, again)
    trained = Counter(
        (str(row["id"]), row["conversations"][1]["value"]) for row in entry.json(f"{entry.data}/llava.json")
    )
    if differing := (trained - rows).total() or trained.total() - min(count, entry.scale.cap):
        yield Finding(
            "D1", f"{entry.data}/llava.json", f"is not made of the rows: {abs(differing)} differ", again
        )


def left_out(entry: Entry) -> tuple[int, int]:
    """Numbers of rows quarantined as they were read, and removed by an operator, in removed.jsonl."""
    rows = [row for _, _, row, _ in entry.lines(f"{entry.data}/removed.jsonl")]
    quarantined = sum(isinstance(row, dict) and row.get("operator") == "read" for row in rows)
    return quarantined, len(rows) - quarantined


def answers(entry: Entry) -> Iterator[Finding]:
    """E1: every answer names the merged model, its question and its place, and carries no mark of a
    simulation."""
    digest = entry.sha256(entry.record_files["merge"])
    for benchmark, file in entry.answers.items():
        yield from _markers(entry, file, entry.rows(file))
        instruction = entry.record(benchmark).settings.get("prompt")
        for position, row in enumerate(entry.rows(file)):
            question = entry.benchmarks[benchmark].question_of(row, instruction)
            if row["answer_id"] != answer_id(digest, position, question):
                message = (
                    f"the answer is not of the model that {entry.record_files['merge']} proves, or not at "
                    "its question's place"
                )
                yield Finding("E1", file, message, AGAIN, line=position + 1)
                break


def scores(entry: Entry) -> Iterator[Finding]:
    """E3: each score follows from its single questions, stands in the record, and is what further outputs
    say."""
    for benchmark in entry.benchmarks:
        file = entry.score(benchmark)
        score, recorded = entry.json(file), entry.record(benchmark).results
        single = list(score["scores"].values())
        accuracy = 100.0 * sum(single) / len(single)
        empty = sum(not row["text"] for row in entry.rows(entry.answers[benchmark]))
        if not math.isclose(score["accuracy"], accuracy, abs_tol=1e-9) or (
            score["questions"],
            score["empty"],
        ) != (len(single), empty):
            message = (
                f"accuracy {score['accuracy']} of {score['questions']} questions does not follow from "
                f"its {len(single)} scores"
            )
            yield Finding("E3", file, f"{message} ({accuracy})", AGAIN)
        if differing := unlike(score, stated(entry, benchmark, {**recorded, "scores": score["scores"]})):
            yield Finding(
                "E3", file, f"{', '.join(differing)} are not what {entry.record_files[benchmark]} says", AGAIN
            )
        yield from restated(entry, benchmark, score)


CHECKS = {"D1": [samples], "E1": [answers], "E3": [answers, scores]}
