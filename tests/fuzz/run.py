"""Search for bytes on which a reader of foreign files fails, guided by the code that they reach (atheris).

    make setup EXTRAS=fuzz
    python tests/fuzz/run.py [--seconds 900] [READER ...]

Each reader of readers.py is searched for so many seconds of computing, in a process of its own. The search
begins with honest bytes, with the cases of tests/fuzz/corpus, and with what earlier searches kept in
.cache/fuzz. A finding is bytes on which the reader raises what is no refusal, calls something valid that was
changed, takes more than CPU seconds or MEMORY more than at first; they are kept in .cache/fuzz/findings. Who
mends one puts it into tests/fuzz/corpus/READER, where test_readers.py reads it for ever.

atheris: https://github.com/google/atheris
"""

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / ".cache/fuzz"
CPU, MEMORY = 20, 1 << 30  # seconds of computing and bytes of growth for one input
HANG = 600  # seconds after which a reader that nothing can interrupt is killed
LONGEST = 1 << 19  # bytes of an input; a longer seed would be cut off, and everything refused
INSTRUMENTED = ["toolkit", "openpyxl", "PIL", "safetensors", "markdown_it", "yaml"]


class TooLong(BaseException):
    """An input took longer than CPU."""


def too_long(*_: object) -> None:
    raise TooLong


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Search:
    """One reader's search: what it is given, counted and judged."""

    def __init__(self, name: str, seconds: float, told: int) -> None:
        import readers

        self.name, self.seconds, self.told = name, seconds, told
        self.reader, self.readers = readers.READERS[name], readers
        self.folder = Path(tempfile.mkdtemp())
        self.count, self.accepted, self.seen = 0, 0, set()
        self.start, self.before = time.process_time(), peak()
        signal.signal(signal.SIGPROF, too_long)

    def __call__(self, data: bytes) -> None:
        if time.process_time() - self.start > self.seconds:
            self.end()
        self.count += 1
        problem = place = None
        signal.setitimer(signal.ITIMER_PROF, CPU)
        try:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                self.accepted += self.readers.accepts(self.name, data, self.folder)
        except TooLong:
            problem = place = f"more than {CPU} s"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            problem, place = traceback.format_exc(), f"{type(error).__name__} {last.filename}:{last.lineno}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if peak() - self.before > MEMORY:
            problem = place = f"{(peak() - self.before) >> 20} MiB"
            self.before = peak()
        if problem and place not in self.seen:
            self.seen.add(place)
            path = KEPT / "findings" / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.write(self.told, f"{self.name}: {path.relative_to(ROOT)}: {problem}\n".encode())

    def end(self) -> None:
        """Print what was done, and leave: libFuzzer knows no end in seconds of computing."""
        line = (
            f"{self.name:14} {self.count:9,} executions, {self.accepted:8,} accepted, "
            f"{time.process_time() - self.start:6.0f} CPU s, {(peak() - self.before) >> 20:5} MiB more, "
            f"{len(list((KEPT / self.name).iterdir())):5} inputs kept, {len(self.seen)} findings\n"
        )
        os.write(self.told, line.encode())
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.readers.TREE.parent, ignore_errors=True)
        os._exit(min(1, len(self.seen)))


def search(name: str, seconds: float) -> None:
    """In a process of its own; it ends in `Search.end`."""
    import atheris

    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # it would name every module
        atheris.instrument_imports(include=INSTRUMENTED),
    ):
        import readers

        if name in readers.WHOLE:
            from toolkit.bundle.checks import remerged

            # the tensors of the honest entry are no model that could be merged
            remerged.merged_again = lambda entry, folder: []
        scratch = Path(tempfile.mkdtemp())
        seeds = readers.READERS[name].seeds()
        if not all(readers.accepts(name, seed, scratch) for seed in seeds):
            raise SystemExit(f"{name}: honest bytes are refused")
    import mutations

    def mutated(data: bytes, most: int, number: int) -> bytes:
        """A zip's members, and records, every second time as a forger would; all else by libFuzzer."""
        if number % 2 and mutations.contents(data):
            with contextlib.suppress(Exception):  # a member that was changed before may be no JSON any more
                return mutations.mutated(data, number)[1][:most]
        if name in readers.WHOLE and number % 2:
            with contextlib.suppress(Exception):
                return mutations.json_value(data, random.Random(number))[:most]
        return atheris.Mutate(data, most)

    begin, own, fixed = scratch / "seeds", KEPT / name, HERE / "corpus" / name
    for folder in (begin, own):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (begin / str(number)).write_bytes(seed)
    told = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    folders = [str(folder) for folder in (own, begin, fixed) if folder.is_dir()]
    options = [f"-max_len={LONGEST}", f"-timeout={HANG}", "-rss_limit_mb=0", f"-artifact_prefix={scratch}/"]
    atheris.Setup([sys.argv[0], *options, *folders], Search(name, seconds, told), custom_mutator=mutated)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", help="names in readers.py; all without one")
    parser.add_argument("--seconds", type=float, default=900, help="of computing for each reader (900)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the search's own process
    arguments = parser.parse_args()
    if arguments.here:
        search(arguments.readers[0], arguments.seconds)
    import readers

    if unknown := set(arguments.readers) - set(readers.READERS):
        parser.error(f"unknown reader {min(unknown)}: choose from {', '.join(readers.READERS)}")
    failed = 0
    for name in arguments.readers or readers.READERS:
        command = [sys.executable, __file__, name, "--seconds", str(arguments.seconds), "--here"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode not in (0, 1):
            print(
                f"{name}: ended with status {done.returncode}: a hang of {HANG} s, or killed for its memory"
            )
        failed += done.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    # as in pyproject.toml: what readers.py shares with the tests, and what that shares with others
    sys.path[:0] = [*(str(HERE.parent / room) for room in ("fuzz", "bundle", "evaluate")), str(ROOT)]
    sys.exit(main())
