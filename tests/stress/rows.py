"""What each row of the stress table does with a tree; each returns a remark."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from tree import SNAKEMAKE, Tree, end

SEED = 1024  # of the points at which runs are disturbed
TIMES = 10
GRACE = 30  # seconds that a cluster leaves between SIGTERM and SIGKILL
USER = 12345  # no user of this machine
# what the toolkit keeps for a continued run, and how many bytes of it must be there before it is damaged
CHECKPOINTS = "output/training_dirs/*/checkpoint-*/*"
KEPT = {
    "output/scores/*.sqlite": 1 << 20,
    CHECKPOINTS: 1 << 16,
    "output/eval_results/**/*.partial*": 1 << 13,
}
DELETE = r"^error: (\S+) is (?:damaged|not valid).*: delete it(?: and (\S+),)?"
# a change of results: a training that went on with the old checkpoint would differ from one that began anew
UPGRADE = ("toolkit/train/trainer.py", "first = seed * 1_000_003 + step", "first = seed * 1_000_033 + step")


class Skip(Exception):
    """Why a row cannot be run here."""


def kill(tree: Tree, wait: float) -> str:
    """killed with SIGKILL at a random point, with all its jobs"""
    process = tree.until(wait)
    ended = process.poll() is not None
    end(process)
    process.wait()
    tree.run()
    return "the run had ended" if ended else "SIGKILL"


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[None]:
    """A file system at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", *options, str(path)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        raise Skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def full(tree: Tree, wait: float) -> str:
    """a disk that is full from a random point on, then gets room"""
    disk = tree.path.with_name("disk")
    with mounted(disk, "-t", "tmpfs", "-o", "size=1g", "tmpfs"):
        home, tree.path = tree.path, disk / "tree"
        shutil.copytree(home, tree.path, symlinks=True)
        process = tree.until(wait)
        filler = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
        with suppress(OSError):
            while True:
                os.write(filler, bytes(1 << 20))
        os.close(filler)
        status, said = process.wait(), tree.error()
        (disk / "filler").unlink()
        tree.run()
        tree.sha256()
        shutil.copyfile(tree.path / "submit.zip", home / "submit.zip")
        tree.path = home
    return f"status {status}, {said}"


def readonly(tree: Tree, _: float) -> str:
    """output/ cannot be written, then it can"""
    output = tree.path / "output"
    with mounted(output, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        status = tree.run()
        said = tree.error(r"^output/ cannot be written.*")
    tree.run()
    return f"status {status}, {said}"


def clock(tree: Tree, wait: float) -> str:
    """killed half-way, continued with the clock a day back: Snakemake refuses to mix the times; then with the
    true clock"""
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
    if library is None:
        raise Skip("needs libfaketime (apt install libfaketime)")
    process = tree.until(wait)
    end(process)
    process.wait()
    status = tree.run(LD_PRELOAD=str(library), FAKETIME="-1d", FAKETIME_DONT_FAKE_MONOTONIC="1")
    if status == 0:
        return "libfaketime, -1d: nothing was refused"
    said = tree.error(r"This could indicate a clock skew problem in your network")
    tree.run()
    return f"libfaketime, -1d: status {status}, {said}"


def preempted(tree: Tree, wait: float) -> str:
    """told to end with SIGTERM, with all its jobs, and killed if it does not"""
    process = tree.until(wait)
    end(process, signal.SIGTERM)
    before = time.monotonic()
    try:
        how = f"status {process.wait(timeout=GRACE)} after {time.monotonic() - before:.0f} s"
    except subprocess.TimeoutExpired:
        how = f"killed after {GRACE} s"
    end(process)
    process.wait()
    tree.run()
    return f"SIGTERM: {how}"


def oom(tree: Tree, wait: float) -> str:
    """the largest process of a stage is killed, as the kernel does where memory runs out"""
    process, victim = tree.until(wait), None
    while process.poll() is None and not victim:
        with suppress(psutil.Error):
            jobs = [
                (job.memory_info().rss, job.pid, " ".join(job.cmdline()[3:5]))
                for job in psutil.Process(process.pid).children(recursive=True)
                if "toolkit" in job.cmdline()
            ]
            victim = max((job for job in jobs if job[0] > 1 << 28), default=None)
    if victim:
        os.kill(victim[1], signal.SIGKILL)
    status, said = process.wait(), tree.error(r"^Error in rule \w+")
    tree.run()
    killed = f"{victim[2]}, {victim[0] >> 20} MiB" if victim else "none"
    return f"{killed}: status {status}, {said}"


def deleted(tree: Tree, printed: str) -> list[str]:
    """Names of damaged files that a run said to delete, which is done."""
    names = []
    for name, second in sorted(set(re.findall(DELETE, printed, re.MULTILINE))):
        file = tree.path / name
        for path in (file, file.with_name(second)) if second else (file,):
            path.unlink(missing_ok=True)
        names.append(file.name)
    return names


def truncated(tree: Tree, _: float) -> str:
    """killed while the store, a checkpoint, answers are there, which are then cut off at a random place"""
    draw, cut, refused = random.Random(SEED), [], []
    for pattern, least in KEPT.items():
        while True:
            before, process = len(tree.printed()), tree.start()
            while (ended := process.poll()) is None and tree.size(pattern) < least:
                time.sleep(0.2)
            if not (ended and (names := deleted(tree, tree.printed()[before:]))):
                break
            refused += names
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0, 5))
        end(process)
        process.wait()
        for path in sorted(path for path in tree.path.glob(pattern) if path.stat().st_size):
            os.truncate(path, draw.randrange(path.stat().st_size))
            cut.append(path.name)
    before = len(tree.printed())
    while tree.run() and (names := deleted(tree, tree.printed()[before:])):
        refused, before = refused + names, len(tree.printed())
    return f"cut off: {', '.join(cut)}; refused until deleted: {', '.join(refused) or 'none'}"


def shared(tree: Tree, _: float) -> str:
    """two runs at once that share the store of statistics, the other as far as it is used"""
    other, store = tree.copy(tree.path.with_name("other")), tree.path.with_name("store")
    store.mkdir()
    for run in (tree, other):
        (run.path / "output").mkdir(exist_ok=True)
        (run.path / "output/scores").symlink_to(store)
    for process in [tree.start(), other.start(target="data")]:
        process.wait()
    files = [path for path in sorted(other.path.glob("output/processed_data/*/*")) if path.is_file()]
    for file in files:
        if file.read_bytes() != (tree.path / file.relative_to(other.path)).read_bytes():
            raise RuntimeError(f"{file} is not the other run's")
    return f"one output/scores; {len(files)} equal files in output/processed_data"


def upgraded(tree: Tree, _: float) -> str:
    """killed when a checkpoint is there; goes on with a toolkit that trains otherwise"""
    undisturbed = tree.copy(tree.path.with_name("undisturbed"))
    process = tree.start()
    pattern = CHECKPOINTS.replace("*", "*-Finetune-*", 1)
    while process.poll() is None and not tree.size(pattern):
        time.sleep(0.2)
    end(process)
    process.wait()
    checkpoints = sorted({path.parent.name for path in tree.path.glob(pattern)})
    for run in (tree, undisturbed):
        file, old, new = UPGRADE
        text = (run.path / file).read_text()
        assert text.count(old) == 1, f"{file} has no {old!r}"
        (run.path / file).write_text(text.replace(old, new))
        run.run()
    tree.expected = undisturbed.sha256()
    return f"killed at {', '.join(checkpoints)}, another seed of dropout; as the upgraded toolkit undisturbed"


def locale(tree: Tree, _: float) -> str:
    """LC_ALL=C, the time zone of Kiribati"""
    tree.run(LC_ALL="C", LANG="C", TZ="Pacific/Kiritimati")
    return "LC_ALL=C TZ=Pacific/Kiritimati"


def plain(tree: Tree, _: float) -> str:
    """a folder called "päth with späces 路径" """
    tree.run()
    return tree.path.name


def user(tree: Tree, _: float) -> str:
    """another user's"""
    if os.getuid():
        raise Skip("needs root")
    probe = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    for path in (tree.path, *tree.path.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    # through a shell, since setpriv's own child still has root's rights
    version = ["sh", "-c", 'exec "$@" --version', "sh", *SNAKEMAKE]
    if subprocess.run([*probe, *version], cwd=tree.path, capture_output=True, check=False).returncode:
        raise Skip(f"user {USER} may not read the environment or the folder")
    tree.run(prefix=tuple(probe), HOME=str(tree.path), XDG_CACHE_HOME=str(tree.path / ".cache"))
    return f"user {USER}, no home"


def core(tree: Tree, _: float) -> str:
    """one core, one job at a time"""
    tree.run("--cores", "1")
    return "--cores 1"


def rows() -> dict[str, tuple[float, Callable[[Tree, float], str]]]:
    """Row: where it disturbs, as a share of the computing, and what it does with a tree and says."""
    draw = random.Random(SEED)
    table = {
        f"{name}-{number}": ((number - draw.random()) / TIMES, row)
        for name, row in {"kill": kill, "full-disk": full}.items()
        for number in range(1, TIMES + 1)
    }
    return table | {
        "preempted": (draw.uniform(0.1, 0.9), preempted),
        "oom": (draw.uniform(0.1, 0.9), oom),
        "read-only": (1, readonly),
        "clock": (0.5, clock),
        "truncated": (0, truncated),
        "shared": (0, shared),
        "upgraded": (0.5, upgraded),
        "locale": (0, locale),
        "path": (0, plain),
        "user": (0, user),
        "one-core": (0, core),
    }
