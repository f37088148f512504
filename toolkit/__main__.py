"""Command line: `python -m toolkit <noun> <verb> [--flags]`; `--help` at each level.

Every noun is a package whose `cli` module declares its verbs with `commands(subparsers)`, or its flags with
`command(parser)` where it does one thing only; either sets `run`, a function of the parsed arguments. Only
the noun that is asked for is imported, so scoring never waits for torch.
"""

import argparse
import errno
import importlib
import os
import re
import select
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from toolkit.arguments import assert_apart
from toolkit.errors import UserError
from toolkit.terminal import guarded, shortened

NOUNS = {
    "ask": "put questions to a model",
    "assets": "models and data sets: status, fetch, adopt, export",
    "bench": "speed and memory of training and answering",
    "bundle": "validate an entry and pack submit.zip",
    "config": "check a configuration and write the schemas",
    "data": "synthesize, check and convert training data",
    "doctor": "whether this machine can do what a configuration asks for",
    "evaluate": "answer the benchmarks and score the answers",
    "export": "a merged model as a folder that transformers loads; push uploads it",
    "merge-check": "whether a merged model is its base with a PEFT adapter folded in",
    "mgm": "the model: parity with the official code",
    "plan": "hours, memory and disk of a configuration before it runs",
    "rehearsal": "the real sizes with random weights",
    "report": "write the report over all experiments",
    "search": "the best recipe for a budget, confirmed",
    "serve": "a model behind an OpenAI-compatible interface",
    "train": "pretrain, finetune, merge",
    "watch": "how far a run of Snakemake is, live in the terminal",
    "world": "the embedded world: data and models",
}
NO_MEMORY = re.compile("out of memory|can't allocate memory")  # as torch says it of a GPU and of the host


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 a problem named in one sentence, 2 wrong usage."""
    with guarded():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m toolkit", description="Better Synth toolkit", allow_abbrev=False
    )
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True)
    for noun, text in NOUNS.items():
        subparser = nouns.add_parser(noun, help=text, description=text, allow_abbrev=False)
        if argv and argv[0] == noun:
            module = importlib.import_module(f"toolkit.{noun.replace('-', '_')}.cli")
            if hasattr(module, "command"):
                module.command(subparser)
            else:
                module.commands(subparser.add_subparsers(dest="verb", metavar="VERB", required=True))
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # libraries' notes to each other
    try:
        assert_apart(arguments)
        with _interruptible():
            status = arguments.run(arguments) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 1
        print(f"error: {shortened(_of_system(error))}", file=sys.stderr)
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        if encoding == "utf-8" or error.encoding != encoding:
            raise
        name = ascii(error.object)
        advice = "run the same command with LC_ALL=C.UTF-8"
        print(
            f"error: {shortened(name)} cannot be a file name in this locale's encoding, {encoding}: {advice}",
            file=sys.stderr,
        )
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        print("error: there is not enough memory for this: ask for less at once", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 1


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within, Ctrl-C ends in KeyboardInterrupt also where what it interrupted raises something else: the
    processes beside this one get it too, and pipes to them break."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    # a command in the background ignores it, and only the main thread may set what it does
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    noting = usual and threading.current_thread() is threading.main_thread()
    if noting:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if noting:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _of_system(error: OSError) -> str:
    """What the system refused, and of which file."""
    several = error.args[0] if isinstance(error, shutil.Error) else ()
    if isinstance(several, list) and several and isinstance(several[0], tuple):
        _, file, reason = several[0]  # of what a folder's copy could not do, the first
        full = f"[Errno {errno.ENOSPC}]" in reason
    else:
        full = error.errno == errno.ENOSPC
        # a copy that found no room has both names, of which the second was written
        file, reason = (full and error.filename2) or error.filename, error.strerror or str(error)
    if full:
        reason = "the disk is full: free some space and run the same command again"
    return f"{file}: {reason}" if file else reason


def _output_is_closed() -> bool:
    """Whether the reader of the output, such as head, has gone; then nothing more is written to it."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    closed = any(events & select.POLLERR for _, events in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return closed


if __name__ == "__main__":
    sys.exit(main())
