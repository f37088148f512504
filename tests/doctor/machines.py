"""Machines that are not here, and what is asked of them."""

from dataclasses import replace

from toolkit.doctor import work
from toolkit.doctor.facts import GPU, Facts
from toolkit.train.memory import GIB, SIZES

H100 = GPU("NVIDIA H100 80GB HBM3", "580.65.06", 9.0, int(79.6 * GIB), int(79.1 * GIB))
RTX4090 = GPU("NVIDIA GeForce RTX 4090", "580.65.06", 8.9, int(23.99 * GIB), int(23.6 * GIB))
SERVER = Facts(
    gpus=(H100,),
    torch="2.13.0",
    cuda=13,
    locked=True,
    memory=256 * GIB,
    available=250 * GIB,
    swap=0,
    shared=64 * GIB,
    open_files=4096,
    lockable=None,
    disk=1000 * GIB,
    file_system="ext4",
    unwritable=(),
    compilers=("C", "C++"),
    headers=True,
    skew=0.0,
    behind=-1000.0,
    encoding="UTF-8",
    unreachable={},
)
LAPTOP = replace(SERVER, gpus=(), torch="2.13.0+cpu", cuda=None, memory=8 * GIB, available=6 * GIB)


def training(*kinds, gpus=1, **others) -> work.Work:
    return work.Work(SIZES["2B"], 2048, ("pretrain", *kinds), 16, gpus, **others)


FULL, LORA = training("full"), training("lora")
TINY = work.Work(SIZES["Tiny"], 256, ("pretrain", "lora"), 16, 0)


def machine(gpu=RTX4090, memory=128, **others) -> Facts:
    """A machine with one such GPU and that many GiB, a tenth of them taken."""
    return replace(SERVER, gpus=(gpu,), memory=memory * GIB, available=int(0.9 * memory * GIB), **others)
