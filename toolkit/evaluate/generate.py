"""Answers of a model, appended batch by batch so that a killed run continues where it was.

Used by `python -m toolkit evaluate textvqa` and `... mmbench`. Beside the answer file lie, until the whole evaluation is done,
`X.partial` (complete lines of whole batches count, anything after them is dropped) and `X.partial.json` (what the lines belong to: another
model, question file or setting starts anew). Greedy decoding gives the same line again, so a continued file ends with the same bytes.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from toolkit.errors import UserError
from toolkit.evaluate.questions import Question
from toolkit.files import atomic, read_json, sha256, write_json
from toolkit.progress import Progress

Answer = Callable[[list[str], list[Image.Image]], list[str]]


class Checkpoint:
    """The merged model of a finetuning folder.

    name: of the folder. path: of the weights. proof: merge.json, which lists the weights' hashes. digest: its sha256.
    UserError when merge.json is missing or names no existing checkpoint.
    """

    def __init__(self, folder: Path):
        proof = folder / "merge.json"
        merge = read_json(proof)
        if not isinstance(merge, dict) or "checkpoint" not in merge.get("results", {}):
            raise UserError(f"{proof} names no checkpoint: run `python -m toolkit train merge` again")
        self.name = folder.resolve().name
        self.path = folder / merge["results"]["checkpoint"]
        self.digest = sha256(proof)
        self.proof = proof
        if not self.path.is_dir():
            raise UserError(f"{proof} names the checkpoint {self.path}, which does not exist: run `python -m toolkit train merge` again")


def answer_id(digest: str, position: int, question: Question) -> str:
    """22 characters (the length of the official random ones) that name the model, the question and its place in the file."""
    return hashlib.sha256(json.dumps([digest, position, question.head, question.message]).encode()).hexdigest()[:22]


def answer_line(question: Question, text: str, identifier: str, model_id: str) -> bytes:
    """One line of the kit's answer file."""
    row = question.head | {"text": text} | question.tail | {"answer_id": identifier, "model_id": model_id, "metadata": {}}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def kept_bytes(partial: Path, identifiers: list[str], batch_size: int) -> tuple[int, int]:
    """(answers, bytes) of a partial file that are worth keeping: its leading whole batches.

    Whole batches, because a batch is padded to its longest prompt: the same prompts must stay together for the same last bits.
    """
    if not partial.exists():
        return 0, 0
    lengths = []
    for line, identifier in zip(partial.read_bytes().splitlines(keepends=True), identifiers, strict=False):
        try:
            if not line.endswith(b"\n") or json.loads(line)["answer_id"] != identifier:
                break
        except (ValueError, KeyError, TypeError):
            break
        lengths.append(len(line))
    count = len(lengths) if len(lengths) == len(identifiers) else len(lengths) // batch_size * batch_size
    return count, sum(lengths[:count])


def write_answers(
    path: Path,
    questions: list[Question],
    answer: Answer,
    load: Callable[[Question], Image.Image],
    checkpoint: Checkpoint,
    settings: dict[str, Any],
) -> None:
    """Answer the questions in batches of settings["batch_size"] and put `path` in place when all are answered.

    answer: messages and images to texts. load: a question's image. settings: all that shapes an answer besides model and questions.
    The partial file stays for `discard_partial`, so that a kill before the scores are written costs no second generation.
    """
    partial, label = partial_of(path)
    identifiers = [answer_id(checkpoint.digest, position, question) for position, question in enumerate(questions)]
    asked = hashlib.sha256(json.dumps([[question.head, question.message, question.image] for question in questions]).encode()).hexdigest()
    belongs = {"model": checkpoint.digest, "name": checkpoint.name, "questions": asked, "settings": settings}
    if not label.exists() or read_json(label) != belongs:
        partial.unlink(missing_ok=True)
        write_json(label, belongs)
    batch_size = settings["batch_size"]
    start, size = kept_bytes(partial, identifiers, batch_size)
    if start:
        print(f"{path.name}: continuing after {start} of {len(questions)} answers", file=sys.stderr)
    progress = Progress(path.name, len(questions), start)
    with partial.open("ab") as handle:
        handle.truncate(size)
        for first in range(start, len(questions), batch_size):
            batch = questions[first : first + batch_size]
            texts = answer([question.message for question in batch], [load(question) for question in batch])
            rows = zip(batch, texts, identifiers[first : first + batch_size], strict=True)
            handle.writelines([answer_line(question, text, identifier, checkpoint.name) for question, text, identifier in rows])
            handle.flush()
            os.fsync(handle.fileno())
            progress.step(len(batch))
    with atomic(path) as temporary:
        temporary.write_bytes(partial.read_bytes())


def partial_of(path: Path) -> tuple[Path, Path]:
    """The unfinished answers and the note of what they belong to."""
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")


def discard_partial(path: Path) -> None:
    """Remove what only a continued run needs."""
    for leftover in partial_of(path):
        leftover.unlink(missing_ok=True)
