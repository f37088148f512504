"""What this machine is: read from the system, nothing judged and nothing changed.

NVIDIA's own program is asked about GPUs, so they are seen whatever build of torch is installed.
"""

import importlib.util
import locale
import os
import re
import resource
import shutil
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from toolkit.contest import records

MIB = 2**20
TIMEOUT = 4.0  # seconds for an address to answer
HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class GPU:
    """A GPU that this process may use; memory in bytes."""

    name: str
    driver: str
    capability: float | None
    total: int
    free: int


@dataclass(frozen=True)
class Facts:
    """A machine, as far as a run of the workflow depends on it; sizes in bytes."""

    gpus: tuple[GPU, ...]
    torch: str | None  # version; None: not installed
    cuda: int | None  # which torch is built for; None: for the CPU
    locked: bool  # every installed package is the locked one
    memory: int  # of the host, or what the container may take
    available: int
    swap: int
    shared: int  # size of /dev/shm
    open_files: int
    lockable: int | None  # None: without a limit
    disk: int  # free, for this user
    file_system: str
    unwritable: tuple[str, ...]
    compilers: tuple[str, ...]  # of C and C++, those that are there
    headers: bool  # of Python
    skew: float  # seconds that the file system's clock is ahead of the machine's
    behind: float  # seconds that the machine's clock lies before the newest file of the toolkit
    encoding: str
    unreachable: dict[str, str] | None = None  # host: what went wrong; None: not tried


def read(folder: Path = Path()) -> Facts:
    """The facts of this machine with `folder` as the work tree; the network is not touched."""
    memory, available, swap = host_memory()
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    skew, behind = clock(folder)
    return Facts(
        gpus=gpus(),
        torch=installed_torch(),
        cuda=torch_cuda(),
        locked=records.lock() is not None,
        memory=memory,
        available=available,
        swap=swap,
        shared=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        lockable=None if locked == resource.RLIM_INFINITY else locked,
        disk=shutil.disk_usage(folder).free,
        file_system=file_system(folder.resolve(), text("/proc/self/mountinfo")),
        unwritable=unwritable(folder),
        compilers=tuple(
            name
            for name, variable, programs in (
                ("C", "CC", ("cc", "gcc", "clang")),
                ("C++", "CXX", ("c++", "g++", "clang++")),
            )
            if any(map(shutil.which, filter(None, (os.environ.get(variable), *programs))))
        ),
        headers=(Path(sysconfig.get_path("include")) / "Python.h").is_file(),
        skew=skew,
        behind=behind,
        encoding=locale.getpreferredencoding(False),
    )


def text(path: str) -> str:
    """What the kernel says in a file, nothing where it has no such file: sandboxes lack some."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def gpus() -> tuple[GPU, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; none where the driver does not answer."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.strip() == "-1"):
        return ()
    # it knows whole GPUs only by these names
    chosen = [] if visible is None or "MIG" in visible else [f"--id={visible}"]
    # drivers before 510 do not know the capability
    for capability in ("compute_cap,", ""):
        fields = f"{capability}driver_version,memory.total,memory.free,name"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *chosen]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ()
        if done.returncode == 0:
            return tuple(map(gpu, done.stdout.splitlines()))
    return ()


def gpu(line: str) -> GPU:
    """A line of nvidia-smi: (capability,) driver, MiB in all, MiB free, name. Numbers that it does not state
    ("[N/A]", of a part of a GPU) are 0."""
    fields = [field.strip() for field in line.split(",")]
    capability = float(fields.pop(0)) if re.fullmatch(r"\d+\.\d", fields[0]) else None
    total, free = (int(size) * MIB if size.isdecimal() else 0 for size in fields[1:3])
    return GPU(", ".join(fields[3:]), fields[0], capability, total, free)


def installed_torch() -> str | None:
    """Version of torch."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def torch_cuda() -> int | None:
    """The CUDA that torch is built for; read from its file, since its import takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    stated = text(str(Path(spec.origin).parent / "version.py"))
    cuda = re.search(r"^cuda\b.*?= *['\"](\d+)\.", stated, re.MULTILINE)
    return int(cuda[1]) if cuda else None


def host_memory() -> tuple[int, int, int]:
    """(bytes in all, bytes available, bytes of swap), within what the control group may take."""
    stated = re.findall(r"^(\w+): +(\d+) kB$", text("/proc/meminfo"), re.MULTILINE)
    sizes = {key: int(size) * 1024 for key, size in stated}
    total, limit = sizes["MemTotal"], group_limit(text("/proc/self/cgroup"))
    swap = sizes.get("SwapTotal", 0) if limit >= total else 0
    return min(total, limit), min(sizes.get("MemAvailable", total), limit), swap


def group_limit(groups: str, root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the groups in /proc/self/cgroup (version 1 or 2), and those around them, may take."""
    limits = [2**63]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        here = top / path.lstrip("/")
        for folder in (here, *here.parents):
            for name in ("memory.max", "memory.limit_in_bytes"):
                if (limit := text(str(folder / name)).strip()).isdecimal():
                    limits.append(int(limit))
            if folder == top:
                break
    return min(limits)


def file_system(folder: Path, mounts: str) -> str:
    """Kind of the file system that an absolute path lies on, by the lines of /proc/self/mountinfo."""
    kind, longest = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")  # a blank is \\040
        # of two mounts on one point the later one is seen
        if folder.is_relative_to(point) and len(point) >= longest:
            kind, longest = after.split()[0], len(point)
    return kind


def unwritable(folder: Path) -> tuple[str, ...]:
    """Of the folders that a run writes to, those that this user may not."""
    places = [folder / "input", folder / "output", folder, Path(tempfile.gettempdir())]
    return tuple(str(place) for place in places if place.exists() and not os.access(place, os.W_OK | os.X_OK))


def clock(folder: Path) -> tuple[float, float]:
    """`skew` and `behind` of Facts."""
    newest = max(path.stat().st_mtime for path in HERE.rglob("*.py"))
    with tempfile.TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None) as file:
        now = time.time()
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime - now, newest - now


def unreachable(addresses: Iterable[str]) -> dict[str, str]:
    """Hosts of `addresses` that do not answer within TIMEOUT, and why; one address of each is asked, any
    answer but a server's error counts."""
    hosts = {urlsplit(address).netloc: address for address in addresses}
    with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
        problems = dict(zip(hosts, pool.map(_problem, hosts.values()), strict=True))
    return {host: problem for host, problem in problems.items() if problem}


def _problem(address: str) -> str | None:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        return f"status {error.code}" if error.code >= 500 else None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
