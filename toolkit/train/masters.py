"""AdamW whose weights on a GPU are bf16 and whose float32 values and moments lie beside them or in the host's
memory: full finetuning by one GPU, or by several that do not hold the optimizer together.

In the host's memory they take 12 bytes a trained number, and the GPU keeps 6: the weight and the sum of its
gradients in float32. A step streams values and moments through the GPU, where torch's fused AdamW runs: both
directions of the bus are busy at a time, and the host computes nothing. ZeRO-Offload (arXiv 2101.06840) keeps
the same in the host's memory, its gradients too, and updates there.
"""

import math
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from toolkit.errors import UserError
from toolkit.train import distributed
from toolkit.train.memory import GIB
from toolkit.train.optimizer import BETAS, EPS, MOMENTS, Optimizer, groups

KEYS = ("value", *MOMENTS)  # rows of what is kept in float32
ALIGNED = 64  # numbers: where a parameter begins, so that matrix products read whole cache lines
PIECE = 2**23  # numbers that travel at a time
BUFFERS = 3  # of a piece: one comes, one is updated, one goes


class MasterAdamW(Optimizer):
    """torch's AdamW in float32 on name -> parameter, of any type on `device`; gradients are summed in float32
    as they come, over the processes at a step, and clipped to `max_grad_norm` (L2).

    offload: keep values and moments in the host's memory. Several processes keep and update a share each.
    """

    def __init__(
        self,
        parameters: dict[str, Parameter],
        weight_decay: float,
        max_grad_norm: float,
        device: torch.device,
        *,
        offload: bool,
    ) -> None:
        self.parameters, self.max_grad_norm, self.device = parameters, max_grad_norm, device
        self.steps = 0
        names, begin = {id(parameter): name for name, parameter in parameters.items()}, 0
        self.places: dict[str, slice] = {}
        self.decays: list[tuple[int, float]] = []  # (end, weight decay) of each run of numbers
        for group in groups(parameters, weight_decay):
            for parameter in group["params"]:
                self.places[names[id(parameter)]] = slice(begin, begin + parameter.numel())
                begin += math.ceil(parameter.numel() / ALIGNED) * ALIGNED
            self.decays.append((begin, group["weight_decay"]))
        processes = distributed.world_size()
        ends = [begin * number // processes for number in range(processes + 1)]
        self.shares = [slice(*pair) for pair in pairwise(ends)]
        self.own = self.shares[distributed.rank()]

        dtype = next(iter(parameters.values())).dtype
        self.weights = torch.zeros(begin, dtype=dtype, device=device)
        self.sums = torch.zeros(begin, device=device)
        self.hooks = []
        for name, parameter in parameters.items():
            weight = self._part(self.weights, name)
            weight.copy_(parameter.detach())
            parameter.data = weight
            add = partial(_add, self._part(self.sums, name))
            self.hooks.append(parameter.register_post_accumulate_grad_hook(add))
        stays = torch.device("cpu") if offload else device
        self.kept = torch.zeros(len(KEYS), self.own.stop - self.own.start, device=stays)
        self.kept[0].copy_(self.weights[self.own])
        self.bus = _Bus(self.kept, device) if stays != device else None

    def _part(self, flat: Tensor, name: str) -> Tensor:
        return flat[self.places[name]].view(self.parameters[name].shape)

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """One update at learning rate `rate` with the gradients added since the last; returns their norm
        before clipping."""
        distributed.sum_in_place(self.sums)
        norm = get_total_norm([self._part(self.sums, name) for name in self.parameters])
        self.sums *= (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        pieces = list(self._pieces())
        kept = [self.kept[:, begin - self.own.start : end - self.own.start] for begin, end, _ in pieces]
        updated = self.bus.through(kept) if self.bus else kept
        for (begin, end, decay), (value, mean, square) in zip(pieces, updated, strict=True):
            adamw(
                [value],
                [self.sums[begin:end]],
                [mean],
                [square],
                [],
                [torch.full((), float(self.steps), device=self.device)],
                fused=self.device.type == "cuda",
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate,
                weight_decay=decay,
                eps=EPS,
                maximize=False,
            )
            self.weights[begin:end].copy_(value)
        self.steps += 1
        for owner, share in enumerate(self.shares):
            distributed.broadcast(self.weights[share], owner)
        self.discard()
        return float(norm)

    def _pieces(self) -> Iterator[tuple[int, int, float]]:
        """(begin, end, weight decay) of the pieces of this process's share."""
        begin = self.own.start
        for run, decay in self.decays:
            while begin < min(run, self.own.stop):
                end = min(begin + PIECE, run, self.own.stop)
                yield begin, end, decay
                begin = end

    def discard(self) -> None:
        """Forget the gradients, also after a pass that broke off."""
        self.sums.zero_()
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Values and moments on the CPU: `value.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`; of
        one process those in the host's memory themselves.

        All processes take part; only the first one gets the tensors.
        """
        tensors: dict[str, Tensor] = {}
        for row, key in enumerate(KEYS):
            if (whole := self._gathered(row)) is not None:
                tensors |= {f"{key}.{name}": self._part(whole, name) for name in self.parameters}
        if tensors:
            tensors |= {f"step.{name}": torch.tensor(float(self.steps)) for name in self.parameters}
        return tensors

    def _gathered(self, row: int) -> Tensor | None:
        """One row of all processes' shares on the CPU, in the first process."""
        if self.bus:
            self.bus.wait()
        kept = self.kept[row].cpu()
        if len(self.shares) == 1:
            return kept
        if distributed.rank():
            distributed.send(kept, 0)
            return None
        whole = torch.empty(self.shares[-1].stop)
        whole[self.own] = kept
        for owner, share in enumerate(self.shares[1:], start=1):
            distributed.receive(whole[share], owner)
        return whole

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave, here or AdamW's."""
        if self.bus:
            self.bus.wait()
        for name, place in self.places.items():
            begin, end = max(place.start, self.own.start), min(place.stop, self.own.stop)
            for row, key in enumerate(KEYS):
                if begin < end:
                    part = tensors[f"{key}.{name}"].flatten()[begin - place.start : end - place.start]
                    self.kept[row, begin - self.own.start : end - self.own.start] = part
            self._part(self.weights, name).copy_(tensors[f"value.{name}"])
            self.steps = int(tensors[f"step.{name}"])

    def close(self) -> None:
        """Give the model its trained parameters in float32 on the CPU, in the first process."""
        values = self._gathered(0)
        for hook in self.hooks:
            hook.remove()
        for name, parameter in self.parameters.items():
            if values is not None:
                parameter.data = self._part(values, name)


def _add(total: Tensor, parameter: Tensor) -> None:
    """Add the parameter's gradient of one pass, which would need as much memory again until the step."""
    total.add_(parameter.grad)  # type: ignore[arg-type]  # it was just made
    parameter.grad = None


class _Bus:
    """Takes pieces of `kept` [rows, n], in the host's memory, through the GPU; page-locks it meanwhile."""

    def __init__(self, kept: Tensor, device: torch.device) -> None:
        self.device = device
        self.up, self.down = torch.cuda.Stream(device), torch.cuda.Stream(device)
        driver = torch.cuda.cudart()
        if driver.cudaHostRegister(kept.data_ptr(), kept.nbytes, 0) != driver.cudaError.success:
            raise UserError(
                f"{kept.nbytes / GIB:.1f} GiB of memory for the optimizer cannot be page-locked: "
                "ulimit -l unlimited (docker: --ulimit memlock=-1), or free memory"
            )
        unlock = weakref.finalize(self, driver.cudaHostUnregister, kept.data_ptr())
        unlock.atexit = False  # the driver may have gone before

    def through(self, pieces: list[Tensor]) -> Iterator[Tensor]:
        """Each of `pieces` [rows, n] on the GPU, to be changed there; it is back after `wait`."""
        here = torch.cuda.current_stream()
        # not kept: between two steps activations need the room
        buffers = torch.empty(BUFFERS, len(pieces[0]), PIECE, device=self.device)
        gone = [torch.cuda.Event() for _ in buffers]  # what was in the buffer before
        for stream in (self.up, self.down):
            buffers.record_stream(stream)
        self.up.wait_stream(here)
        self.up.wait_stream(self.down)
        for number, piece in enumerate(pieces):
            there, before = buffers[number % BUFFERS, :, : piece.shape[1]], gone[number % BUFFERS]
            with torch.cuda.stream(self.up):
                self.up.wait_event(before)
                _copy(there, piece)
            here.wait_stream(self.up)
            yield there
            self.down.wait_stream(here)
            with torch.cuda.stream(self.down):
                _copy(piece, there)
                before.record()

    def wait(self) -> None:
        """Wait until all pieces are back."""
        self.down.synchronize()


def _copy(target: Tensor, source: Tensor) -> None:
    """Row by row, each in one run of memory."""
    for there, here in zip(target, source, strict=True):
        there.copy_(here, non_blocking=True)
