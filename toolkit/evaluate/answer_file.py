"""Answers of a model, appended as they come so that a killed run continues where it was.

Used by `python -m toolkit evaluate textvqa` and `... mmbench`. Beside the answer file lie, until the whole
evaluation is done, `X.partial` (answers in the order in which they came; what follows the last complete line
is dropped) and `X.partial.json` (what the lines belong to: another model, question file or setting, other
code or packages start anew). An answer depends on nothing but its question, so a continued file ends with the
same bytes, even if it was begun with another batch size.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from toolkit import code
from toolkit.benchmarks.questions import Question
from toolkit.contest.records import read_record, versions
from toolkit.errors import UserError
from toolkit.evaluate.shards import Stream
from toolkit.files import atomic, read_json, sha256, write_json
from toolkit.mgm.folder import checkpoint_files
from toolkit.progress import Progress

PACKAGES = ("torch", "transformers", "pillow")  # what decides an answer beside the code


class Checkpoint:
    """The merged model of a finetuning folder.

    name: of the folder. path: of the weights. proof: merge.json, which lists the weights' hashes. digest: its
    sha256. UserError when merge.json is missing or names no existing checkpoint, or a file of the checkpoint
    is not the one that it lists.
    """

    def __init__(self, folder: Path):
        self.proof = folder / "merge.json"
        merge = read_record(self.proof, "merge")
        self.name = folder.resolve().name
        if merge.results.get("checkpoint") not in ("merged", "."):
            raise UserError(f"{self.proof} names no checkpoint: run `python -m toolkit train merge` again")
        self.path = folder / merge.results["checkpoint"]
        if not self.path.is_dir():
            raise UserError(
                f"{self.proof} names {self.path}, which does not exist: run `python -m toolkit train merge` "
                "again"
            )
        for path in sorted({*checkpoint_files(self.path), *(self.path / name for name in merge.outputs)}):
            merge.output(path)
        self.digest = sha256(self.proof)


def answer_id(digest: str, position: int, question: Question) -> str:
    """22 characters (the length of the official random ids) that name the model, the question and its place
    in the file."""
    return hashlib.sha256(
        json.dumps([digest, position, question.head, question.message]).encode()
    ).hexdigest()[:22]


def answer_line(question: Question, text: str, identifier: str, model_id: str) -> bytes:
    """One line of the kit's answer file."""
    row = (
        question.head
        | {"text": text}
        | question.tail
        | {"answer_id": identifier, "model_id": model_id, "metadata": {}}
    )
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """A score without its single questions."""
    return {key: value for key, value in result.items() if key != "scores"}


def score_file(
    benchmark: str,
    result: dict[str, Any],
    model: str,
    digest: str,
    files: dict[str, str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What score.json holds: `result`, the model's name and its proof's digest, the SHA-256 of the files of
    answers, how they were given."""
    about = {"model": {"name": model, "merge_sha256": digest}, "files": files, "settings": settings}
    return {"benchmark": benchmark, **summary(result), **about, "scores": result["scores"]}


def kept_lines(partial: Path, identifiers: set[str]) -> dict[str, bytes]:
    """The answers of a partial file, by answer_id, up to the first line that is torn or of another run."""
    lines: dict[str, bytes] = {}
    if partial.exists():
        for line in partial.read_bytes().splitlines(keepends=True):
            try:
                identifier = json.loads(line)["answer_id"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n") or identifier not in identifiers:
                break
            lines[identifier] = line
    return lines


def write_answers(
    path: Path,
    questions: list[Question],
    stream: Stream,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    places: list[int] | None = None,
) -> None:
    """Answer the questions and put `path`, in their order, in place when all are answered.

    settings: all that shapes an answer besides model and questions. places: of the questions in the
    benchmark, for a sample of them. The partial file stays for `discard_partial`, so that a
    kill before the scores are written costs no second generation.
    """
    partial, label = partial_of(path)
    places = list(range(len(questions))) if places is None else places
    identifiers = [
        answer_id(checkpoint.digest, place, question)
        for place, question in zip(places, questions, strict=True)
    ]
    questions_sha256 = hashlib.sha256(
        json.dumps([[question.head, question.message, question.image] for question in questions]).encode()
    ).hexdigest()
    belongs = {
        "model": checkpoint.digest,
        "name": checkpoint.name,
        "questions": questions_sha256,
        "settings": settings,
        "code": code.digest("toolkit.benchmarks", "toolkit.evaluate.answer_file"),
        "versions": versions(*PACKAGES),
    }
    try:
        before = read_json(label) if label.exists() else None
    except UserError as error:
        raise UserError(f"{error}: delete it and {partial.name}, the questions are answered anew") from None
    if before != belongs:
        if (partial.exists() or label.exists()) and not (
            isinstance(before, dict) and {"model", "questions"} <= before.keys()
        ):
            raise UserError(
                f"{partial if partial.exists() else label} was not written by an evaluation: move it away"
            )
        partial.unlink(missing_ok=True)
        write_json(label, belongs)
    lines = kept_lines(partial, set(identifiers))
    if lines:
        print(f"{path.name}: continuing after {len(lines)} of {len(questions)} answers", file=sys.stderr)
    remaining = [position for position, identifier in enumerate(identifiers) if identifier not in lines]
    progress = Progress(path.name, len(questions), len(lines))
    with partial.open("ab") as handle:
        handle.truncate(sum(map(len, lines.values())))
        for number, text in stream([questions[position] for position in remaining]):
            position = remaining[number]
            line = answer_line(questions[position], text, identifiers[position], checkpoint.name)
            lines[identifiers[position]] = line
            handle.write(line)
            handle.flush()
            progress.step()
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(lines[identifier] for identifier in identifiers))


def partial_of(path: Path) -> tuple[Path, Path]:
    """The unfinished answers and the note of what they belong to."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")


def discard_partial(path: Path) -> None:
    """Remove what only a continued run needs."""
    for leftover in partial_of(path):
        leftover.unlink(missing_ok=True)
