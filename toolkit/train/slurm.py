"""A training on several nodes of a Slurm job: srun starts torchrun on each of them, and both end with it.

    python -m toolkit train finetune ... --gpus 8 --nodes 2

becomes, on the job's first node,

    srun --nodes 2 ... python -m toolkit.train.torchrun --nnodes 2 --nproc-per-node 4 ...
        -m toolkit train finetune ... --gpus 8
"""

import os
import shutil
import socket
import sys
from typing import NoReturn

from toolkit.errors import UserError
from toolkit.train.distributed import free_port


def processes(nodes: int, gpus: int) -> int:
    """Processes of each node: one for each of its GPUs, one where there is none. UserError when the GPUs
    cannot be shared evenly."""
    if gpus % nodes:
        raise UserError(f"--gpus {gpus} are those of all {nodes} nodes: give a multiple of {nodes}")
    return max(1, gpus // nodes)


def launch(nodes: int, gpus: int, argv: list[str]) -> NoReturn:
    """Become the srun that runs `python -m toolkit ARGV` on `nodes` nodes of the Slurm job of which this is
    the first node, as a batch script is; UserError outside of a job.

    A process that fails ends all, and so does a node that is lost: the job is then submitted again, and its
    training continues from the last checkpoint.
    """
    job, srun = os.environ.get("SLURM_JOB_ID"), shutil.which("srun")
    if not (job and srun):
        raise UserError(
            f"--nodes {nodes} works within a Slurm job of {nodes} nodes: use the profile that `plan --nodes "
            f"{nodes} --profile DIR` writes, or start torchrun on each machine (docs/training.md)"
        )
    several = ["--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1"]
    # without binding, a node's processes share all processors that the job has there, not a task's
    step = [*several, "--kill-on-bad-exit=1", "--cpu-bind=none"]
    world = ["--nnodes", str(nodes), "--nproc-per-node", str(processes(nodes, gpus))]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{socket.gethostname()}:{free_port()}"]
    torchrun = [sys.executable, "-m", "toolkit.train.torchrun", *world, *meeting, "--rdzv-id", job]
    os.execv(srun, [srun, *step, *torchrun, "-m", "toolkit", *argv])
