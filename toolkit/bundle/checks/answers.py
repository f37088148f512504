"""E1, E2, E3: every question has one real answer of the merged model, and the scores follow from the
answers."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.questions import Question
from toolkit.bundle.checks.inputs import files_of
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import WARNING, Finding
from toolkit.counted import counted
from toolkit.evaluate import control
from toolkit.evaluate.answer_file import answer_id, score_file, summary

AGAIN = "delete the answers and evaluate again"
COMPARISON = "output/reports/compare.json"
UNUSABLE = 0.5  # largest share of answers that cannot be right


def questions(entry: Entry, benchmark: str) -> list[Question]:
    """The questions of the files that the evaluation's record names, in their order."""
    files, prompt = files_of(entry, benchmark), entry.record(benchmark).settings.get("prompt")
    return entry.once(
        f"questions, {prompt}", benchmark, lambda name: BENCHMARKS[name].questions(files, prompt)
    )


def complete(entry: Entry) -> Iterator[Finding]:
    """E1: the questions asked are the benchmark's; no answer is empty, simulated or, for MMBench, no
    option."""
    for benchmark, file in entry.answers.items():
        rows = entry.rows(file)
        if not rows:
            yield Finding("E1", file, "there are no answers", AGAIN)
            continue
        # The fields before the answer's text name a question; TextVQA asks about one image more than once.
        expected = Counter(_key(question.head) for question in questions(entry, benchmark))
        answered = Counter(_key(row) for row in rows)
        if missing := expected - answered:
            lacking = counted(missing.total(), "question has", "questions have")
            message = f"{lacking} no answer, the first is {next(iter(missing))[0]}"
            yield Finding("E1", file, message, AGAIN)
        for number, row in enumerate(rows, start=1):
            if answered[_key(row)] > expected[_key(row)]:
                message = f"question {row.get('question_id')} is unknown or answered twice"
                yield Finding("E1", file, message, AGAIN, line=number)
                break
        yield from _markers(entry, file, rows)
        empty = sum(not str(row.get("text", "")).strip() for row in rows)
        yield from _share(
            file, empty, len(rows), entry.rules.bounds(benchmark).empty_share, "answers are empty"
        )
        yield from _marked_results(entry, benchmark)
        if entry.record(benchmark).settings["shuffle_images"] is not None:
            message = "the images were shuffled: this is a control run, not an evaluation"
            yield Finding("E1", entry.record_files[benchmark], message, AGAIN)
        if unusable := entry.benchmarks[benchmark].unusable(rows):
            limit = 1.0 if entry.rules.rehearsal else UNUSABLE
            yield from _share(file, unusable[0], len(rows), limit, unusable[1])


def _key(row: dict[str, Any]) -> tuple:
    return (row.get("question_id"), row.get("prompt"))


def _share(file: str, count: int, total: int, limit: float, description: str) -> Iterator[Finding]:
    """A warning for any, an error beyond `limit`."""
    if total and count / total > limit:
        yield Finding("E1", file, f"{count} of {total} {description}, at most {limit:.0%} may be", AGAIN)
    elif count:
        message = f"{count} of {total} {description}"
        yield Finding("E1", file, message, "nothing to do: each counts as wrong", severity=WARNING)


def _markers(entry: Entry, file: str, rows: list[dict]) -> Iterator[Finding]:
    """Notes of simulation anywhere but in the question and the answer."""
    for number, row in enumerate(rows, start=1):
        notes = str(
            {key: value for key, value in row.items() if key not in ("prompt", "text", "options")}
        ).lower()
        if marks := [marker for marker in entry.rules.markers if marker in notes]:
            yield Finding(
                "E1", file, f"the answer carries the mark {marks[0]!r} of a simulation", AGAIN, line=number
            )
            return


def _marked_results(entry: Entry, benchmark: str) -> Iterator[Finding]:
    """Notes of simulation in the scores and in the record; paths may hold any word."""
    record = entry.record(benchmark)
    notes = {record.file: str(record.results) + str(sorted(record.settings))}
    score = entry.score(benchmark)
    notes[score] = str({key: value for key, value in entry.json(score).items() if key != "scores"})
    for file, text in notes.items():
        if marks := [marker for marker in entry.rules.markers if marker in text.lower()]:
            yield Finding("E1", file, f"carries the mark {marks[0]!r} of a simulation", AGAIN)


def degenerate(entry: Entry) -> Iterator[Finding]:
    """E2: answers vary, depend on the image, and differ from those of every other experiment in the tree or
    in compare.json. Not in a rehearsal."""
    if entry.rules.rehearsal:
        return
    for benchmark, file in entry.answers.items():
        bounds = entry.rules.bounds(benchmark)
        texts = list(map(control.answer_text, entry.rows(file)))
        counts = Counter(texts)
        if not counts:
            continue
        answer, top = counts.most_common(1)[0]
        remedy = "look at the answers and at the training logs: the model does not use the image"
        if len(counts) < bounds.distinct:
            different = counted(len(counts), "different answer")
            message = f"{different} to {len(texts)} questions, {bounds.distinct} are expected"
            yield Finding("E2", file, message, remedy)
        if top / len(texts) > bounds.top_share:
            message = f"{top} of {len(texts)} answers are {answer!r}, at most {bounds.top_share:.0%} may be"
            yield Finding("E2", file, message, remedy)
        results = entry.json(COMPARISON)["benchmarks"][benchmark]["results"]
        twins = [
            name
            for name in entry.names(file.replace(entry.model, "*"))
            if list(map(control.answer_text, entry.rows(name))) == texts
        ]
        twins += [
            name
            for name, result in results.items()
            if result["texts"] == control.texts_sha256(entry.rows(file))
        ]
        for twin in twins:
            if twin not in (file, entry.model):
                message = f"all answers equal those of {twin}"
                yield Finding("E2", file, message, "evaluate both experiments again, each with its own model")
        yield from _blind(entry, benchmark, file, remedy)


def _blind(entry: Entry, benchmark: str, file: str, remedy: str) -> Iterator[Finding]:
    """E2: with another question's image the model answers otherwise."""
    answers, again = entry.rows(file), entry.rows(entry.control(benchmark))
    expected = [answers[place]["answer_id"] for place in control.places(len(answers))]
    if [row.get("answer_id") for row in again] != expected:
        message = (
            f"does not hold the {len(expected)} answers of {file} that are re-evaluated with other images"
        )
        yield Finding("E2", entry.control(benchmark), message, AGAIN)
        return
    counts, limit = control.agreement(answers, again), entry.rules.bounds(benchmark).same_share
    if counts["same"] > limit * counts["questions"]:
        message = (
            f"{counts['same']} of {counts['questions']} answers are the same with another image, at most "
            f"{limit:.0%} may be"
        )
        yield Finding("E2", file, message, remedy)


def scores(entry: Entry) -> Iterator[Finding]:
    """E3: score.json and the upload table say what the answers say; the answers name the proved model."""
    for name, benchmark in entry.benchmarks.items():
        files = files_of(entry, name)
        yield from _score(entry, name, benchmark.score(files, entry.path(entry.answers[name])))
        yield from _further(entry, name, files)
    digest = entry.sha256(entry.record_files["merge"])
    for name, file in entry.answers.items():
        pairs = zip_longest(entry.rows(file), questions(entry, name))
        for position, (row, question) in enumerate(pairs):
            if (
                row is None
                or question is None
                or row.get("answer_id") != answer_id(digest, position, question)
            ):
                message = (
                    f"the answer is not of the model that {entry.record_files['merge']} proves, or not at "
                    "its question's place"
                )
                yield Finding("E3", file, message, AGAIN, line=position + 1)
                break


def _score(entry: Entry, benchmark: str, result: dict[str, Any]) -> Iterator[Finding]:
    """score.json and the record's results are as recomputed (`result`)."""
    file = entry.score(benchmark)
    recorded = entry.json(file)
    answers = entry.rows(entry.answers[benchmark])
    result["texts"] = control.texts_sha256(answers)
    result["control"] = control.agreement(answers, entry.rows(entry.control(benchmark)))
    if differing := unlike(recorded, stated(entry, benchmark, result)):
        message = (
            f"{', '.join(differing)} do not follow from the answers: accuracy is {recorded.get('accuracy')}, "
            f"recomputed {result['accuracy']}"
        )
        yield Finding("E3", file, message, AGAIN)
    record = entry.record(benchmark)
    if differing := unlike(record.results, summary(result)):
        yield Finding("E3", record.file, f"{', '.join(differing)} do not follow from the answers", AGAIN)


def stated(entry: Entry, benchmark: str, result: dict[str, Any]) -> dict[str, Any]:
    """What score.json says where `result` is the score of the answers that the record names."""
    record, digest = entry.record(benchmark), entry.sha256(entry.record_files["merge"])
    files = {name: item.sha256 for name, item in record.outputs.items() if name != "score"}
    return score_file(benchmark, result, entry.model, digest, files, record.settings)


def unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Keys under which two objects differ."""
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def restated(entry: Entry, benchmark: str, expected: dict[str, Any]) -> Iterator[Finding]:
    """Each output that holds the score once more (a table for upload) says `expected`."""
    outputs = entry.outputs(benchmark)
    for name, result in entry.benchmarks[benchmark].restated(
        {key: entry.path(path) for key, path in outputs.items()}
    ):
        if differing := [
            key for key, value in result.items() if expected.get(key) != value and key != "empty"
        ]:
            message = (
                f"{', '.join(differing)} are not as stated: it scores {result['accuracy']}, the answers "
                f"{expected.get('accuracy')}"
            )
            yield Finding("E3", outputs[name], message, AGAIN)


def _further(entry: Entry, name: str, files: dict[str, Path]) -> Iterator[Finding]:
    """What the official scripts make of the answers (a table for upload) is made of them."""
    benchmark, outputs = entry.benchmarks[name], entry.outputs(name)
    with tempfile.TemporaryDirectory() as folder:
        rewritten = {key: Path(folder) / Path(path).name for key, path in outputs.items()}
        rewritten["answers"] = entry.path(outputs["answers"])
        benchmark.write_further(files, rewritten)
        for key in benchmark.further_files:
            if rewritten[key].read_bytes() != entry.path(
                outputs[key]
            ).read_bytes() and not benchmark.same_further(key, rewritten[key], entry.path(outputs[key])):
                message = f"is not what the toolkit makes of {outputs['answers']}"
                yield Finding("E3", outputs[key], message, AGAIN)
