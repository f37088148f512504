"""Command line of questions by hand: one, answered as it is typed, or JSON lines from stdin."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.arguments import at_least_one, seed, utf8
from toolkit.ask.folder import base_flags, base_of
from toolkit.ask.model import MAX_NEW_TOKENS, MGM
from toolkit.config import Asked, as_flag
from toolkit.errors import UserError
from toolkit.files import LINE
from toolkit.parse import Malformed, json_value

if TYPE_CHECKING:
    from toolkit.mgm.nucleus import Sampling


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `ask`."""
    base_flags(parser)
    parser.add_argument(
        "question",
        type=utf8,
        nargs="?",
        help='without it, lines {"image": PATH, [PATH, …] or null, "question": TEXT} are read from stdin',
    )
    parser.add_argument("--image", type=Path, action="append", help="that the question is about; repeatable")
    parser.add_argument(
        "--max-new-tokens", type=at_least_one, default=MAX_NEW_TOKENS, help=f"({MAX_NEW_TOKENS})"
    )
    parser.add_argument(
        "--temperature", type=float, help="draw tokens with this temperature instead of taking the likeliest"
    )
    parser.add_argument("--top-p", type=float, help="draw among the likeliest of this share (1)")
    parser.add_argument("--seed", type=seed, help="of the drawing")
    parser.add_argument("--batch-size", type=at_least_one, **as_flag(Asked, "batch_size"))
    parser.set_defaults(run=ask)


def ask(arguments: argparse.Namespace) -> None:
    """Print the answer while it comes, or a line for each line of stdin, in their order."""
    a, base = arguments, base_of(arguments)
    single = a.question is not None
    if not single and (a.image or a.temperature is not None):
        raise UserError("--image and --temperature are for a question on the command line: add the question")
    if a.temperature is None and (a.top_p is not None or a.seed is not None):
        raise UserError("--top-p and --seed shape how tokens are drawn: add --temperature")
    if not single and sys.stdin.isatty():
        raise UserError("nothing is asked: add a question, or send JSON lines to stdin")
    questions = [] if single else list(read_questions(sys.stdin.buffer))
    model = MGM.load(a.model, base, batch_size=1 if single else a.batch_size, quantize=a.quantize)
    if single:
        for piece in model.stream(a.image, a.question, a.max_new_tokens, _sampling(a)):
            print(piece, end="", flush=True)
        print()
        return
    for (_, question), answer in zip(questions, model.answers(questions, a.max_new_tokens), strict=True):
        print(json.dumps({"question": question, "answer": answer}, ensure_ascii=False), flush=True)


def _sampling(arguments: argparse.Namespace) -> "Sampling | None":
    from toolkit.mgm.nucleus import Sampling

    top_p = 1.0 if arguments.top_p is None else arguments.top_p
    drawn = Sampling(arguments.temperature or 1.0, top_p, arguments.seed)
    return drawn if arguments.temperature else None  # 0 takes the likeliest, as it does everywhere


def read_questions(lines: Iterable[bytes]) -> Iterator[tuple[list[str], str]]:
    """(images, question) of JSON lines; UserError names the first line that is none."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"stdin, line {number}"
        try:
            row = json_value(line) if len(line) <= LINE else None
        except Malformed as error:
            raise UserError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(row, dict) or not {"question"} <= row.keys() <= {"image", "question"}:
            raise UserError(f"{where} is not an object of question and image")
        image, question = row.get("image"), row["question"]
        images = [] if image is None else [image] if isinstance(image, str) else image
        paths = isinstance(images, list) and all(isinstance(path, str) and path for path in images)
        if not isinstance(question, str) or not paths:
            raise UserError(
                f"{where}: question must be a text, image the path of a file, a list of paths or null"
            )
        if absent := [path for path in images if not Path(path).is_file()]:
            raise UserError(f"{where}: there is no image {absent[0]}")
        yield images, question
