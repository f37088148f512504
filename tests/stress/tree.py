"""Copies of the project in which a row of the stress table runs, and the run that they are compared with."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("data", "train", "evaluate", "submit.zip")
SNAKEMAKE = [sys.executable, "-m", "snakemake"]


class Tree:
    """A copy of the project at `path`, run on `cores`; what is printed goes to stress.log beside it.

    like: a tree to begin with; the committed files unless given. expected: SHA-256 of its submit.zip where it
    is not the reference's.
    """

    def __init__(self, path: Path, cores: list[int], like: Path | None = None):
        self.path, self.cores, self.log = path, ",".join(map(str, cores)), path.with_name("stress.log")
        self.expected: str | None = None
        if like:
            shutil.copytree(like, path, symlinks=True)
            return
        path.mkdir(parents=True)
        packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", path], input=packed, check=True)

    def copy(self, path: Path) -> "Tree":
        """Another tree that begins as this one is now."""
        return Tree(path, list(map(int, self.cores.split(","))), self.path)

    def start(
        self, *arguments: str, target: str = "submit.zip", prefix: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen:
        """`snakemake submit.zip`, in a process group of its own, after a stale lock was removed."""
        prefix = ("taskset", "--cpu-list", self.cores, *prefix)
        if any((self.path / ".snakemake/locks").glob("*")):
            command = [*prefix, *SNAKEMAKE, "--unlock", "--quiet", "all"]
            subprocess.run(command, cwd=self.path, check=True, capture_output=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
        with self.log.open("ab") as log:
            command = [*prefix, *SNAKEMAKE, target, "--cores", "2", *arguments]
            return subprocess.Popen(
                command, cwd=self.path, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *arguments: str, prefix: tuple[str, ...] = (), **variables: str) -> int:
        """The exit status of a whole run."""
        return self.start(*arguments, prefix=prefix, **variables).wait()

    def until(self, wait: float) -> subprocess.Popen:
        """A run that has gone on for `wait` seconds, or has ended."""
        process = self.start()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait)
        return process

    def size(self, pattern: str) -> int:
        """Bytes of the files that match."""
        with suppress(FileNotFoundError):  # some come and go
            return sum(path.stat().st_size for path in self.path.glob(pattern))
        return 0

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def sha256(self) -> str:
        """Of submit.zip; RuntimeError says where to read why there is none."""
        archive = self.path / "submit.zip"
        if not archive.exists():
            raise RuntimeError(f"no submit.zip was made, see {self.log}")
        return hashlib.sha256(archive.read_bytes()).hexdigest()

    def error(self, pattern: str = "^error: .*") -> str:
        """The one error that was printed, by what it looks like; what is wrong with it otherwise."""
        errors = sorted({match[0] for match in re.finditer(pattern, self.printed(), re.MULTILINE)})
        if "Traceback (most recent call last)" in self.printed():
            return "A TRACEBACK"
        return errors[0] if len(errors) == 1 else f"{len(errors)} ERRORS"


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Send a signal to a run and all its jobs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@dataclass(frozen=True)
class Reference:
    """The undisturbed run. ends: seconds of computing until the end of each part. trees: where its copies
    after the parts lie."""

    commit: str
    seconds: float
    ends: list[float]
    sha256: str
    trees: str

    @classmethod
    def of(cls, folder: Path) -> "Reference":
        """Made once a folder and commit."""
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        known, trees = folder / "reference.json", folder / "reference"
        if known.exists() and (reference := cls(**json.loads(known.read_text()))).commit == commit:
            return reference
        shutil.rmtree(trees, ignore_errors=True)
        tree, start, ends = Tree(trees / "tree", sorted(os.sched_getaffinity(0))), time.monotonic(), []
        for part in PARTS:
            tree.start(target=part).wait()
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            ends.append(used.ru_utime + used.ru_stime)
            shutil.copytree(tree.path, trees / part, symlinks=True)
        reference = cls(commit, time.monotonic() - start, ends, tree.sha256(), str(trees))
        known.write_text(json.dumps(vars(reference)))
        return reference

    def tree(self, path: Path, point: float, core: int) -> tuple[Tree, float]:
        """A tree before the point, a share of the computing, and the seconds until then."""
        moment = point * self.ends[-1]
        before = [number for number, ended in enumerate(self.ends[:-1]) if ended <= moment]
        if not before:
            return Tree(path, [core]), moment
        last = before[-1]
        return Tree(path, [core], Path(self.trees) / PARTS[last]), moment - self.ends[last]
