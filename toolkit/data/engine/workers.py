"""Who computes: this process, processes beside it, one process a GPU, or Ray's workers. The results are the
same and come in order."""

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from toolkit.data import network
from toolkit.data.engine import juicer
from toolkit.errors import UserError
from toolkit.processes import AHEAD, ordered, pool

# rows, and which of them each operator wants
Task = tuple[Sequence[tuple[str, str, dict | None]], Sequence[Sequence[int]]]


@contextmanager
def workers(
    job: juicer.Job, processes: int, executor: str
) -> Iterator[Callable[[Iterable[Task]], Iterator[list[list[str]]]]]:
    """A function that runs `juicer.compute` of `job` over tasks, in order.

    executor: "local", or "ray" (a cluster that RAY_ADDRESS names, else `processes` workers of this machine).
    Operators that use a GPU run in this process, or where there are several GPUs in one process for each.
    """
    on_gpu = any(
        instance.use_cuda() for instance in job.instances()
    )  # made before forking: imports are shared
    gpus = 0
    if on_gpu:
        import torch

        gpus = torch.cuda.device_count()
    if executor == "ray":
        with _ray(job, processes, gpus > 0) as run:
            yield run
    elif gpus > 1:
        context = multiprocessing.get_context("spawn")  # a process that has used a GPU cannot be forked
        ranks = context.Queue()
        for rank in range(gpus):
            ranks.put(rank)
        with pool(gpus, context, _on_gpu, (ranks,)) as beside:
            yield lambda tasks: ordered(
                lambda task: beside.submit(_compute_on_gpu, job, *task), tasks, gpus * AHEAD
            )
    elif processes > 1 and not on_gpu:
        # threads of this process would be missing in its forks
        with _one_thread(), pool(processes, multiprocessing.get_context("fork"), _set_one_thread) as beside:
            yield lambda tasks: ordered(
                lambda task: beside.submit(juicer.compute, job, *task), tasks, processes * AHEAD
            )
    else:
        with nullcontext() if on_gpu else _one_thread():  # the same bits on any number of cores
            yield lambda tasks: (juicer.compute(job, *task) for task in tasks)


def _set_one_thread() -> None:
    """Let PyTorch compute on one thread, also if it is imported later."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """`_set_one_thread` while this lasts; what is imported meanwhile keeps to it."""
    torch, variable = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS")
    threads = torch.get_num_threads() if torch else 0
    _set_one_thread()
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if variable is not None:
            os.environ["OMP_NUM_THREADS"] = variable
        if torch:
            torch.set_num_threads(threads)


_rank: int | None = None


def _on_gpu(ranks: Any) -> None:
    global _rank
    _rank = ranks.get()


def _compute_on_gpu(
    job: juicer.Job, rows: Sequence[juicer.Content], places: Sequence[Sequence[int]]
) -> list[list[str]]:
    with juicer.offline():
        return juicer.compute(job, rows, places, _rank)


@contextmanager
def ray_ends() -> Iterator[None]:
    """Ray, which the first operators to need it start, ends with this."""
    try:
        yield
    finally:
        ray = sys.modules.get("ray")
        if ray and ray.is_initialized():
            ray.shutdown()


@contextmanager
def _ray(
    job: juicer.Job, processes: int, on_gpu: bool
) -> Iterator[Callable[[Iterable[Task]], Iterator[list[list[str]]]]]:
    """Ray's workers. Each makes the operators once; models are read from the same folders, so they must be
    reachable from every node."""
    import ray

    with network.online():
        if not ray.is_initialized():
            _start_ray(processes)
        try:
            remote = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_retries=2)(_compute_on_ray)
            count = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1))
            yield lambda tasks: ordered(lambda task: remote.remote(job, *task).future(), tasks, count * AHEAD)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # without what Ray says around it
        except ray.exceptions.RayError as error:
            raise UserError(
                f"Ray gave up ({' '.join(str(error).split())[:300]}): run the same again to continue"
            ) from None


def _start_ray(processes: int) -> None:
    import ray
    import torch

    address = os.environ.get("RAY_ADDRESS")
    size: dict[str, Any] = (
        {}
        if address
        else {"num_cpus": processes, "num_gpus": torch.cuda.device_count(), "include_dashboard": False}
    )
    ray.init(
        address=address or "local",  # without an address Ray joins a cluster that runs on this machine
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": _RAY_ENVIRONMENT},
        **size,
    )


# The toolkit lies in the working directory, which must be the same on every node.
_RAY_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}


def _compute_on_ray(job: juicer.Job, *task: Any) -> list[list[str]]:
    with juicer.offline():
        _set_one_thread()
        return juicer.compute(job, *task)
