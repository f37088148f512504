"""The file of an endpoint's answers: JSON lines, one an answer, `{"key", "text", "problem", "tokens"}`, found
by the key of the request.

While a run asks, a line is appended and on the disk before the next answer is waited for, so that a kill
costs only the answers under way. At the end the lines are sorted by key.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

from toolkit.errors import UserError
from toolkit.files import atomic
from toolkit.parse import json_value

BEGINNING = b'{"key": "'  # of every line


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered. `text` is None where there is a `problem`; `tokens`: of request and answer,
    by the endpoint's count."""

    text: str | None
    problem: str | None = None
    tokens: tuple[int, int] = (0, 0)


def read(path: Path) -> dict[str, Answer]:
    """Answers by key; a last line that a kill cut off is left out. UserError for a line that holds no
    answer."""
    if not path.is_file():
        return {}
    answers = {}
    for number, line in enumerate(path.read_bytes().rpartition(b"\n")[0].split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = _Line.model_validate(json_value(line))
            answers[value.key] = Answer(value.text, value.problem, value.tokens)
        except ValueError:
            raise UserError(
                f"{path}, line {number} is not a stored answer: delete the line, the request is repeated"
            ) from None
    return answers


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: StrictStr
    text: StrictStr | None
    problem: StrictStr | None
    tokens: tuple[StrictInt, StrictInt]


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """The file of answers, open for one run to append to; others wait. A line that a kill cut off is taken
    away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # else it was sorted meanwhile: another file now
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                data = path.read_bytes()
                torn = data.rpartition(b"\n")[2]
                if not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
                    raise UserError(
                        f"{path} ends with a line that is not a stored answer: move the file away, or name "
                        "another one"
                    )
                os.truncate(descriptor, len(data) - len(torn))
                yield descriptor
                return
        finally:
            os.close(descriptor)


def append(descriptor: int, key: str, answer: Answer) -> None:
    """Add one answer, and wait until it is on the disk. OSError when there is no room for all of it."""
    line = _line(key, answer).encode()
    count = os.write(descriptor, line)
    if count < len(line):  # half a line would spoil the next one
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - count)
        raise OSError(errno.ENOSPC, "the disk is full")
    os.fsync(descriptor)


def sort(path: Path) -> None:
    """Write the answers in the order of their keys: the bytes do not depend on which came first."""
    answers = read(path)
    if not answers:
        path.unlink()
        return
    with atomic(path) as temporary:
        temporary.write_text("".join(_line(key, answers[key]) for key in sorted(answers)), encoding="utf-8")


def _line(key: str, answer: Answer) -> str:
    return json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n"
