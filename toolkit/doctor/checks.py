"""The checks: each a function of a machine's facts and of what a configuration asks for, nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from toolkit.counted import counted
from toolkit.doctor.facts import MIB, Facts
from toolkit.doctor.work import LIGHTER, SETTINGS, Work
from toolkit.errors import UserError
from toolkit.train.memory import GIB, RESERVE

State = Literal["ok", "warning", "failure"]

# Of the NVIDIA driver, by the CUDA that torch is built for: applications of one major version share it.
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVERS = {12: 525, 13: 580}
LOCKS = {12: "requirements/torch-cuda12.lock", 13: "requirements/torch-cuda.lock"}
BF16 = 8.0  # compute capability from which a GPU computes in bfloat16
FP8 = 8.9  # and multiplies in 8 bits
CPU_RUN = 3 * GIB  # of the host's memory: the embedded world takes 2.3 GB (toolkit/scales/tiny.yaml)
SHARED = GIB  # of /dev/shm, for NCCL or Ray; containers have 64 MiB unless told otherwise
OPEN_FILES = 1024
SKEW = 2.0  # seconds; Snakemake compares times of files
# file systems whose locks and times are another machine's
REMOTE = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
}


@dataclass(frozen=True)
class Check:
    """The outcome of a check; remedy: what to do, empty where nothing is."""

    name: str
    state: State
    seen: str
    remedy: str = ""


def size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def driver(facts: Facts, work: Work) -> Check:
    """The NVIDIA driver against the CUDA that the installed torch is built for."""
    name = "NVIDIA driver"
    worse: State = "failure" if work.gpus else "warning"
    if facts.torch is None:
        return Check(name, "failure", "torch is not installed", "run make setup")
    if not facts.gpus and not work.gpus:
        return Check(name, "ok", "no GPU; this configuration runs on the CPU")
    if not facts.gpus:
        remedy = f"install NVIDIA's driver {DRIVERS[13]} or later, or start the container with --gpus all; "
        remedy += "the embedded world (workflow/config/tiny.yaml) needs no GPU"
        return Check(name, "failure", "no NVIDIA GPU answers (nvidia-smi)", remedy)
    built = f"CUDA {facts.cuda}" if facts.cuda else "the CPU"
    seen = f"{facts.gpus[0].driver}; torch {facts.torch} is built for {built}"
    version = facts.gpus[0].driver.partition(".")[0]
    serving = [cuda for cuda, oldest in DRIVERS.items() if version.isdecimal() and int(version) >= oldest]
    if not serving:
        return Check(name, worse, seen, f"update the driver to {DRIVERS[13]}, at least to {DRIVERS[12]}")
    if facts.cuda in serving or (facts.cuda is None and not work.gpus):
        return Check(name, "ok", seen)
    lock = LOCKS[max(serving)]
    remedy = f"run make setup, which takes {lock} for this driver"
    if max(serving) == 12:
        remedy += f" (image: docker build --build-arg TORCH=cuda12), or update the driver to {DRIVERS[13]}"
    return Check(name, worse, seen, remedy)


def capability(facts: Facts, work: Work) -> Check:
    """Whether the GPU computes in bfloat16, as every training on a GPU does."""
    name = "compute capability"
    if not facts.gpus:
        remedy = f"a GPU of compute capability {BF16} (Ampere) or later is needed"
        return Check(name, "failure" if work.gpus else "ok", "no GPU", remedy if work.gpus else "")
    seen = ", ".join(
        f"{gpu.name}: {'not stated' if gpu.capability is None else gpu.capability}" for gpu in facts.gpus
    )
    lowest = min(gpu.capability or BF16 for gpu in facts.gpus)
    if lowest < BF16:
        # an embedded world is trained on the GPU too where torch sees one
        state: State = "failure" if work.gpus or facts.cuda else "ok"
        other = f"train on a GPU of compute capability {BF16} (Ampere) or later"
        remedy = other if work.gpus else "set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
        return Check(name, state, f"{seen}, which has no bfloat16", remedy if state == "failure" else "")
    if work.fp8 and work.gpus and lowest < FP8:
        remedy = f"leave base at full, or train on a GPU of compute capability {FP8} (Ada) or later"
        return Check(name, "failure", f"{seen}, which does not multiply in 8 bits (base: fp8)", remedy)
    return Check(name, "ok", f"{seen}, which has bfloat16")


def budget(facts: Facts, work: Work) -> int:
    """Bytes of each GPU that may be allocated, by the one with the least; 0 without a GPU."""
    free = [gpu.free for gpu in facts.gpus[: max(work.gpus, 1)]]
    return int(min(free, default=0) * (1 - RESERVE))


def gpu_memory(facts: Facts, work: Work) -> Check:
    """Free memory of the GPU against what the stages need at least, as computed from the model's sizes."""
    name, room = "GPU memory", budget(facts, work)
    if not work.gpus:
        return Check(name, "ok", "the embedded world needs none")
    if any(not gpu.total for gpu in facts.gpus):
        return Check(name, "warning", "not stated by nvidia-smi", "see what the training says")
    needs = {kind: work.device(kind, work.setting(kind, room)) for kind in work.kinds}
    seen = ", ".join(f"{kind} at least {size(need)}" for kind, need in needs.items())
    seen += f"; {size(room)} are free, a reserve of {RESERVE:.0%} left out" if facts.gpus else "; no GPU"
    needed = max(needs.values())
    if needed <= room:
        return Check(name, "ok", seen)
    remedy = f"a GPU with {size(needed / (1 - RESERVE))} free is needed: see nvidia-smi"
    others = [need for kind, need in needs.items() if kind != work.kinds[-1]]
    for kind in LIGHTER.get(work.kinds[-1], ()):
        lighter = max([work.device(kind, "zero2"), *others])
        if lighter < needed and (lighter <= room or not facts.gpus):
            return Check(name, "failure", seen, f"{remedy}; {SETTINGS[kind]} needs {size(lighter)}")
    return Check(name, "failure", seen, remedy)


def host_memory(facts: Facts, work: Work) -> Check:
    """Memory of the host against what the stages take of it at their peak, computed too."""
    name, have = "host memory", f"{size(facts.available)} of {size(facts.memory)} are available"
    if not work.gpus:
        seen = f"the embedded world takes {size(CPU_RUN)}; {have}"
        if facts.available + facts.swap >= CPU_RUN:
            return Check(name, "ok", seen)
        return Check(name, "warning", seen, "end other programs")
    settings = {kind: work.setting(kind, budget(facts, work)) for kind in work.kinds}
    needs = {kind: work.host(kind, setting, checkpoint=False) for kind, setting in settings.items()}
    saving = max(work.host(kind, setting, checkpoint=True) for kind, setting in settings.items())
    offload = {kind: " with its optimizer there" * (settings[kind] == "offload") for kind in needs}
    seen = ", ".join(f"{kind}{offload[kind]} {size(need)}" for kind, need in needs.items())
    seen += f", {size(saving)} while a checkpoint is written" * (saving > max(needs.values())) + f"; {have}"
    if facts.available + facts.swap >= saving:
        return Check(name, "ok", seen)
    remedy = ""
    if "full" in needs:
        lora = work.host("lora", "zero2", checkpoint=True)
        remedy = f"take LoRA ({SETTINGS['lora']}), which needs {size(lora)}"
        if offload["full"]:
            remedy += f", or a GPU with {size(work.whole())} free, which keeps the optimizer"
    if facts.memory + facts.swap < max(needs.values()):
        return Check(name, "failure", seen, remedy or f"{size(max(needs.values()))} are needed")
    return Check(name, "warning", seen, "; ".join(filter(None, ["end other programs", remedy])))


def shared_memory(facts: Facts, work: Work) -> Check:
    """/dev/shm, which several GPUs and Ray use; image workers do without."""
    name, seen = "/dev/shm", size(facts.shared)
    if facts.shared >= SHARED or (work.gpus < 2 and not work.ray):
        return Check(name, "ok", seen)
    return Check(name, "warning", seen, "docker run --shm-size 2g; several GPUs and Ray exchange data in it")


def open_files(facts: Facts, work: Work) -> Check:
    """How many files a process may hold open."""
    seen = "without a limit" if facts.open_files < 0 else str(facts.open_files)
    if facts.open_files < 0 or facts.open_files >= OPEN_FILES:
        return Check("open files", "ok", seen)
    return Check("open files", "warning", seen, f"ulimit -n {4 * OPEN_FILES} (docker: --ulimit nofile=4096)")


def locked_memory(facts: Facts, work: Work) -> Check:
    """How much memory may be page-locked, which an optimizer on the host is."""
    name = "locked memory"
    seen = "without a limit" if facts.lockable is None else f"at most {size(facts.lockable)}"
    offload = any(work.setting(kind, budget(facts, work)) == "offload" for kind in work.kinds)
    if facts.lockable is None or not (work.gpus and offload):
        return Check(name, "ok", seen)
    remedy = "should page-locking fail: ulimit -l unlimited (docker: --ulimit memlock=-1)"
    return Check(name, "warning", f"{seen}; the optimizer on the host is page-locked", remedy)


def disk(facts: Facts, work: Work) -> Check:
    """Free space in the work tree against what is fetched and kept."""
    needed = work.fetched + work.kept
    parts = [f"{size(work.kept)} for outputs", f"{size(work.checkpoints)} for checkpoints"]
    parts += [f"{size(work.fetched)} for assets"] * (work.fetched > 0)
    parts += [f"{counted(work.unsized, 'file')} of unknown size"] * (work.unsized > 0)
    seen = f"{', '.join(parts)}; {size(facts.disk)} are free"
    if facts.disk < needed:
        return Check(
            "disk", "failure", seen, f"free {size(needed - facts.disk)}, or link input/ to another disk"
        )
    if facts.disk < needed + work.checkpoints:
        return Check("disk", "warning", seen, "free more, or a checkpoint may not be written")
    if work.unsized:
        return Check("disk", "warning", seen, "see what `expected` says in the scale's file (toolkit/scales)")
    return Check("disk", "ok", seen)


def compilers(facts: Facts, work: Work) -> Check:
    """What Triton and DeepSpeed build small host programs with, on a GPU."""
    name = "compilers"
    absent = [f"compiler of {language}" for language in ("C", "C++") if language not in facts.compilers]
    absent += [] if facts.headers else ["Python's headers"]
    if not absent:
        return Check(name, "ok", "C, C++, Python's headers")
    if not work.gpus:
        return Check(name, "ok", f"no {', no '.join(absent)}; not needed on the CPU")
    return Check(name, "failure", f"no {', no '.join(absent)}", "apt install g++ python3-dev")


def clock(facts: Facts, work: Work) -> Check:
    """The machine's clock, by the file system's and by files that were written before."""
    seen = f"{facts.skew:+.1f} s between it and the file system's"
    if facts.behind > SKEW:
        seen = f"{facts.behind / 3600:.1f} h before the newest file of the toolkit was written"
        return Check("clock", "warning", seen, "set it (timedatectl set-ntp true): certificates depend on it")
    if abs(facts.skew) > SKEW:
        remedy = "synchronise both machines: Snakemake compares times of files"
        return Check("clock", "warning", seen, remedy)
    return Check("clock", "ok", seen)


def encoding(facts: Facts, work: Work) -> Check:
    """The locale's encoding."""
    if facts.encoding.lower().replace("-", "") == "utf8":
        return Check("locale", "ok", facts.encoding)
    return Check("locale", "warning", facts.encoding, "export LC_ALL=C.UTF-8")


def writable(facts: Facts, work: Work) -> Check:
    """Whether this user may write where a run writes."""
    if not facts.unwritable:
        return Check("write permission", "ok", "input, output, the work tree, the temporary folder")
    seen = f"{', '.join(facts.unwritable)} cannot be written"
    return Check("write permission", "failure", seen, "make it writable (docker: --user, --tmpfs /tmp:exec)")


def file_system(facts: Facts, work: Work) -> Check:
    """Whether the work tree lies on another machine."""
    kind = facts.file_system
    if kind not in REMOTE and not kind.startswith("fuse."):
        return Check("file system", "ok", kind or "not stated by the kernel")
    remedy = "work on a local disk, or let Snakemake wait for files (--latency-wait 60)"
    return Check("file system", "warning", f"{kind}, of another machine", remedy)


def network(facts: Facts, work: Work) -> Check:
    """Whether the hosts of what is still to be fetched answer, and have all of it."""
    if work.lacking:
        names = ", ".join(work.lacking)
        remedy = "run `python -m toolkit assets adopt` on the folder that you have of it"
        return Check(
            "network", "failure", f"{names} of your own is not in input/, and no address has it", remedy
        )
    if not work.addresses:
        return Check("network", "ok", "every asset is there or made here: nothing to fetch")
    if facts.unreachable is None:
        return Check("network", "ok", "not tried (--offline)")
    if not facts.unreachable:
        return Check("network", "ok", f"every host of {counted(len(work.addresses), 'file')} answers")
    seen = "; ".join(f"{host}: {problem}" for host, problem in facts.unreachable.items())
    return Check(
        "network", "failure", seen, "see to the network or HTTPS_PROXY, or bring the files into input/"
    )


def rules(facts: Facts, work: Work) -> Check:
    """Whether the rules admit the assets that the configuration names."""
    if not work.foreign:
        return Check("rules", "ok", "they admit every asset")
    remedy = "name the assets that they fix, or make everything but submit.zip"
    return Check("rules", "warning", "; ".join(work.foreign), remedy)


def packages(facts: Facts, work: Work) -> Check:
    """Whether the environment, of the machine or of an image, is the one that this code's locks describe."""
    if facts.locked:
        return Check("packages", "ok", "as the locks of this code have them")
    seen = "other versions than the locks of this code"
    return Check("packages", "warning", seen, "run make setup, or build the image anew from this code")


QUICK: tuple[Callable[[Facts, Work], Check], ...] = (driver, capability, gpu_memory, host_memory, compilers)
ALL = (
    *QUICK,
    shared_memory,
    open_files,
    locked_memory,
    disk,
    clock,
    encoding,
    writable,
    file_system,
    network,
    rules,
    packages,
)


def judge(facts: Facts, work: Work, checks: tuple[Callable[[Facts, Work], Check], ...] = ALL) -> list[Check]:
    """What each check says."""
    return [check(facts, work) for check in checks]


def assert_able(facts: Facts, work: Work) -> list[Check]:
    """The quick checks' warnings; UserError with the remedy of the first that fails."""
    judged = judge(facts, work, QUICK)
    for check in judged:
        if check.state == "failure":
            raise UserError(f"this machine cannot do it, {check.name}: {check.seen}: {check.remedy}")
    return [check for check in judged if check.state == "warning"]
