"""A stranger's work inside bubblewrap (https://github.com/containers/bubblewrap), where it can run.

Inside there are the system's programs and libraries, this Python and a mirror of assets, read-only, and one
folder to write into. There is no network, not even this machine's own services; no home directory, no other
process, no privilege, no terminal. What all its processes take together is looked at each second and bounded
by Limits; a single process or file cannot pass them between two looks either.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.assets import mirror
from toolkit.errors import UserError

# What programs need of the system; nothing in it is a user's.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys"),
    *(f"/etc/{name}" for name in ("alternatives", "fonts", "group", "ld.so.cache", "localtime", "passwd")),
)
TMP = "/tmp"  # inside
LOOK = 1.0  # seconds between two looks
PAGE = os.sysconf("SC_PAGE_SIZE")
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What all processes together may take: hours of time, bytes of memory, bytes of disk in the folder."""

    hours: float
    memory: int
    disk: int

    @classmethod
    def of(cls, folder: Path, hours: float, memory: float | None, disk: float | None) -> "Limits":
        """Those that are given (GiB), else three quarters of this machine's memory and of its free disk."""
        machine = os.sysconf("SC_PHYS_PAGES") * PAGE * 3 // 4
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        return cls(
            hours,
            machine if memory is None else int(memory * GIB),
            free * 3 // 4 if disk is None else int(disk * GIB),
        )

    def __str__(self) -> str:
        return (
            f"{self.hours:g} h, {self.memory / GIB:.1f} GiB of memory and {self.disk / GIB:.1f} GiB of disk"
        )


def options(folder: Path, temporary: str, fixed: list[Path], limits: Limits) -> list[str]:
    """bubblewrap, up to the command that it runs. `folder` is where that may write, but for what is `fixed`;
    `temporary` is its /tmp."""
    mounts = [["--ro-bind-try", path, path] for path in SYSTEM]
    mounts += [["--proc", "/proc"], ["--dev", "/dev"]]
    mounts += [["--dev-bind", str(path), str(path)] for path in sorted(Path("/dev").glob("nvidia*"))]
    mounts += [["--size", str(limits.memory // 4), "--tmpfs", "/dev/shm"]]
    mounts += [["--bind", temporary, TMP]]
    assets = mirror.root()
    for path in {sys.base_prefix, sys.prefix} | ({str(assets.resolve())} if assets else set()):
        mounts += [["--ro-bind", path, path]]
    mounts += [["--bind", str(folder), str(folder)]]
    mounts += [["--ro-bind", str(path), str(path)] for path in fixed]
    # /proc too: to root's processes the kernel's settings in it are writable without any privilege
    mounts += [["--remount-ro", path] for path in ("/dev", "/proc", "/")]
    alone = ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    return [
        "bwrap",
        *alone,
        "--die-with-parent",
        "--new-session",
        *(word for mount in mounts for word in mount),
    ]


def refused(folder: Path, limits: Limits) -> str | None:
    """Why there is no sandbox here, as a phrase; None where one runs, which is tried."""
    try:
        with _temporary(folder) as temporary:
            command = [*options(folder, temporary, [], limits), "--", sys.executable, "-c", ""]
            done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "bubblewrap (bwrap) is not installed"
    words = " ".join(done.stderr.split())
    return f"bubblewrap cannot run here ({words[:200]})" if done.returncode else None


def run(
    command: list[str], folder: Path, variables: dict[str, str], fixed: list[Path], limits: Limits
) -> int:
    """The exit status of `command`, started in `folder`, in which it can change anything but what is `fixed`;
    what it prints goes to stderr. UserError, and the end of all its processes, where they take more than
    `limits`."""
    reading, writing = os.pipe()
    start = time.monotonic()
    with _temporary(folder) as temporary, os.fdopen(reading) as status:
        process = subprocess.Popen(
            [*options(folder, temporary, fixed, limits), "--json-status-fd", str(writing), "--", *command],
            cwd=folder,
            # a read-only environment keeps nothing compiled: each command would compile thousands of modules
            env=variables | {"TMPDIR": TMP, "PYTHONPYCACHEPREFIX": f"{TMP}/bytecode"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
            preexec_fn=lambda: bound(limits),
            text=True,
            errors="replace",
        )
        os.close(writing)
        # its last writer has gone when all of them have
        shown = threading.Thread(target=sys.stderr.writelines, args=[process.stdout])
        shown.start()
        try:
            line = status.readline()  # empty where bubblewrap itself failed
            namespace = json.loads(line)["pid-namespace"] if line else 0
            pause = LOOK
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(pause)
                looked = time.monotonic()
                for what, taken, limit, option in (
                    ("time", (looked - start) / 3600, limits.hours, "--hours"),
                    ("memory", memory(namespace), limits.memory, "--memory-gib"),
                    ("disk", disk(folder), limits.disk, "--disk-gib"),
                ):
                    if taken > limit:
                        raise UserError(
                            f"the run in {folder} took more {what} than it may ({limits}) and was ended: "
                            f"{option} allows more"
                        )
                pause = max(LOOK, 10 * (time.monotonic() - looked))  # a look at many files takes long
        finally:
            process.kill()  # and bubblewrap's init with it, and so all that runs inside
            process.wait()
            shown.join()
    return process.returncode


def memory(namespace: int) -> int:
    """Bytes of private memory of all processes in the PID namespace of this inode."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended, or is another user's
                if (entry / "ns/pid").stat().st_ino == namespace:
                    _, resident, shared, *_ = map(int, (entry / "statm").read_text().split())
                    total += (resident - shared) * PAGE
    return total


def disk(folder: Path) -> int:
    """Bytes of disk that the files in the folder take."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512  # noqa: PTH118 - for its speed
    return total


def _temporary(folder: Path) -> tempfile.TemporaryDirectory:
    """A new folder in `folder`: a link that an earlier run left under an old name would be mounted."""
    return tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder, ignore_cleanup_errors=True)


def bound(limits: Limits) -> None:
    """Between two looks: no process and no file may pass the limits alone."""
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.disk, limits.disk))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
