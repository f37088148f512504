"""What is printed cannot steer the terminal: texts of others may hold escape sequences that hide a verdict or
fake one."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 1000  # characters of a line that quotes a text of others
LOG_WIDTH = 160  # columns of a table where no terminal says how many there are

# Control characters; signs that turn the direction of writing; line separators of Unicode; half surrogate
# pairs, which cannot be printed.
STEERING = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
STEERING_BUT_LAYOUT = re.compile(STEERING.pattern.replace("\\x00-\\x1f", "\\x00-\\x08\\x0b-\\x1f"))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: Any) -> str:
    """`text` in one line, with all that would steer a terminal escaped as in a Python string."""
    return STEERING.sub(_escaped, str(text))


def shortened(text: str) -> str:
    """`text` without what follows LONGEST characters of a line: texts of others may have millions."""
    lines = text.split("\n")
    return "\n".join(line if len(line) <= LONGEST else f"{line[:LONGEST]}…" for line in lines)


class Guarded:
    """A text stream that escapes what would steer a terminal, line ends and tabs excepted, and what its
    encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self.stream.write(STEERING_BUT_LAYOUT.sub(_escaped, text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unguarded(stream: Any) -> Any:
    """The stream itself, for what may steer the terminal."""
    return stream.stream if isinstance(stream, Guarded) else stream


def open_closed_streams() -> None:
    """Open the null device where the shell closed a standard stream (`>&-`): the next file that is opened
    would have its number, and what libraries print would stand in that file."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


@contextmanager
def guarded() -> Iterator[None]:
    """Within, nothing that is printed steers the terminal; `console` is for what does so on purpose."""
    open_closed_streams()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Guarded, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def console() -> "Console":
    """Where tables are printed, with their own colours; texts of others go in through `printable`."""
    from rich.console import Console

    stream = unguarded(sys.stdout)
    return Console(file=stream) if stream.isatty() else Console(file=stream, width=LOG_WIDTH)
