"""Several processes, one for each GPU: who am I, sums over all, and the launcher. With one process everything
here is a no-op.

`python -m toolkit train finetune --gpus 2 ...` runs that very command twice (`launch`). Across machines
`toolkit.train.torchrun` does the same: both set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from toolkit.errors import UserError
from toolkit.processes import asked_to_end, cores, end_with_parent

BUCKET = 2**24  # numbers that are summed at a time
PORTS = range(20_000, 32_768)  # below those of connections, as Linux has them by default
LOST = 75  # exit status of a process that stops because another one did

Value = TypeVar("Value")


def rank() -> int:
    """This process's number, 0 for the one that prints and writes."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched() -> bool:
    """Whether this process is one of `launch` or torchrun."""
    return "RANK" in os.environ


def device() -> torch.device:
    """This process's GPU, which becomes the current one, or the CPU where there is none; UserError when GPUs
    are fewer than processes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= count:
        raise UserError(f"--gpus asks for {local + 1} or more, and this machine has {count}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def start() -> None:
    """Meet the other processes: NCCL between GPUs, gloo for what lies on the CPU."""
    if world_size() > 1 and not dist.is_initialized():
        cuda = device().type == "cuda"
        with _peers():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


def stop() -> None:
    """Leave the group; call it at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        any_process(False)


def any_process(flag: bool) -> bool:
    """Whether `flag` holds in any process."""
    return bool(largest(int(flag)))


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if world_size() == 1:
        return number
    value = torch.tensor(number)
    with _peers():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def agree(value: Value) -> Value:
    """The first process's `value`, any picklable object, in all."""
    values = [value]
    if world_size() > 1:
        with _peers():
            dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def total(value: Tensor) -> Tensor:
    """Sum of `value` over the processes."""
    if world_size() > 1:
        value = value.clone()
        sum_in_place(value)
    return value


def sum_in_place(values: Tensor) -> None:
    """Replace `values` by their sum over the processes."""
    if world_size() > 1:
        with _peers():
            dist.all_reduce(values)


def broadcast(values: Tensor, owner: int) -> None:
    """Replace `values` by the owner's."""
    if world_size() > 1:
        with _peers():
            dist.broadcast(values, owner)


def send(values: Tensor, to: int) -> None:
    """Hand `values` to a process that waits in `receive`."""
    with _peers():
        dist.send(values, to)


def receive(values: Tensor, owner: int) -> None:
    """Replace `values` by those that the owner sends."""
    with _peers():
        dist.recv(values, owner)


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace every gradient by its sum over the processes; one that is absent counts as zero."""
    if world_size() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        sum_in_place(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(
            bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)]
        )


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cut `tensors` into runs of one type and at most BUCKET numbers (or a single larger tensor)."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def _peers() -> Iterator[None]:
    """End quietly when the other processes are gone: the one that went first says why."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:
        raise SystemExit(LOST) from None


def free_port() -> int:
    """A port that nothing listens on. It is none of those that Linux gives to connections, one of which could
    take it before the processes, which first import torch, listen there."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def launch(processes: int, argv: list[str]) -> int:
    """Run `python -m toolkit ARGV` in `processes` processes on this machine; returns the exit status of the
    one that failed first, or 0.

    The first one's output is this process's. Of the others only the sentence of one that fails is shown, and
    a failure ends them all. (torchrun's own output, a page for each failure, would bury that sentence.)
    """
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))
    children: list[tuple[subprocess.Popen, IO | None]] = []
    with ExitStack() as stack:
        for number in range(processes):
            said = stack.enter_context(tempfile.TemporaryFile()) if number else None
            child = subprocess.Popen(
                [sys.executable, "-m", "toolkit", *argv],
                env={**os.environ, **common, "RANK": str(number), "LOCAL_RANK": str(number)},
                stdout=subprocess.DEVNULL if number else None,
                stderr=said,
                preexec_fn=end_with_parent,
            )
            stack.callback(child.wait)
            stack.callback(child.kill)
            children.append((child, said))
        return _wait(children, stack.enter_context(asked_to_end()))


def _wait(children: list[tuple[subprocess.Popen, IO | None]], ending: Callable[[], bool]) -> int:
    """Wait for all children, or for the first failure; see `launch`. ending: whether they shall end."""
    told = False
    while not any(child.poll() for child, _ in children):
        if all(child.poll() == 0 for child, _ in children):
            return 0
        if ending() and not told:
            told = True
            for child, _ in children:
                child.terminate()
        time.sleep(0.05)
    time.sleep(0.5)  # one that others took along may be seen to end before the one that did
    for child, said in children:
        if child.poll() in (None, 0, LOST):
            continue
        if child.returncode < 0:
            print(
                f"error: a process of the training was ended by signal {-child.returncode}: see whether "
                "memory ran out",
                file=sys.stderr,
            )
            return 128 - child.returncode
        if said:
            said.seek(0)
            print(said.read().decode(errors="replace").strip().splitlines()[-1], file=sys.stderr)
        return child.returncode
    print(
        "error: the processes lost each other: run again with NCCL_DEBUG=INFO to see where", file=sys.stderr
    )
    return 1
