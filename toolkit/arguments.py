"""What the values of command lines may be: each function makes one of its text, and argparse shows its
ArgumentTypeError as wrong usage."""

import argparse
import math
from pathlib import Path, PosixPath

from toolkit import seeds
from toolkit.errors import UserError
from toolkit.files import assert_replaceable
from toolkit.processes import cores

PER_CORE = 4  # of processes that also wait for files


class Output(PosixPath):
    """The file that a command writes: `assert_apart` tells it from those that it reads."""


def assert_apart(arguments: argparse.Namespace) -> None:
    """UserError where an `Output` is another file of the command, which would be lost, or is no file."""
    values = [
        each for value in vars(arguments).values() for each in (value if isinstance(value, list) else [value])
    ]
    paths = [value for value in values if isinstance(value, Path)]
    seen = {path.resolve() for path in paths if not isinstance(path, Output)}
    for path in paths:
        if isinstance(path, Output):
            assert_replaceable(path)
            if path.resolve() in seen:
                raise UserError(
                    f"{path} is to be written and is another file of this command: name a file of its own"
                )
            seen.add(path.resolve())


def at_least_one(text: str) -> int:
    """An integer from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 up")
    return int(text)


def processes(text: str) -> int:
    """Processes or threads that work side by side, from 1 up; at most PER_CORE for each core, for more would
    only take memory."""
    return min(at_least_one(text), PER_CORE * cores())


def resamples(text: str) -> int:
    """Resamples of a bootstrap, of which fewer than 100 have no tails to speak of."""
    if at_least_one(text) < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 100 up")
    return int(text)


def from_zero(text: str) -> int:
    """An integer from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 up")
    return int(text)


def seed(text: str) -> int:
    """An integer that torch, numpy and Python take for a seed alike."""
    if not text.isdecimal() or int(text) >= seeds.LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to below 2^63")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def utf8(text: str) -> str:
    """A text that UTF-8 can hold: Python passes on other bytes as half surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def file(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return Path(text)


def output_folder(text: str) -> Path:
    """A folder to write to, which need not be there."""
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, a folder is expected")
    return Path(text)
