"""AdamW over the trained parameters, with the gradients of all processes: what an optimizer step is, without
DeepSpeed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from toolkit.train.distributed import sum_gradients

MOMENTS = ("exp_avg", "exp_avg_sq")
BETAS, EPS = (0.9, 0.999), 1e-8  # Transformers' defaults, which the kit keeps


class Optimizer(ABC):
    """What a training asks of AdamW, MasterAdamW and Zero, which hold its trained `parameters`.

    lockstep: the processes must go through the same number of passes.
    """

    parameters: dict[str, Parameter]
    lockstep = False

    def forward(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`function(*arguments)`, a loss that `backward` may be called with."""
        return function(*arguments)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`."""
        loss.backward()

    @abstractmethod
    def step(self, rate: float) -> Tensor | float:
        """One update at learning rate `rate` with the gradients added since the last; returns their norm
        before clipping."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients, also after a pass that broke off."""

    def bytes_to_come(self) -> int:
        """Bytes on the device that the first step will allocate and keep."""
        return 0

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Values and moments on the CPU, in float32: `value.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`,
        `step.NAME`. All processes take part; of several the first one gets the tensors."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave, of any optimizer."""

    def close(self) -> None:  # noqa: B027
        """Give the model its trained parameters whole and in float32, where they are not."""


def groups(parameters: dict[str, Parameter], weight_decay: float) -> list[dict]:
    """Matrices decay, norms and biases do not."""
    decayed = [p for p in parameters.values() if p.ndim > 1]
    undecayed = [p for p in parameters.values() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


class AdamW(Optimizer):
    """torch's AdamW in float32 on name -> parameter, gradients summed over the processes and clipped to
    `max_grad_norm` (L2). part: of a parameter's name, the part that shares a learning rate."""

    def __init__(
        self,
        parameters: dict[str, Parameter],
        weight_decay: float,
        max_grad_norm: float,
        device: torch.device,
        part: Callable[[str], str] = lambda name: "",
    ) -> None:
        self.parameters, self.max_grad_norm, self.device = parameters, max_grad_norm, device
        parts: dict[str, dict[str, Parameter]] = {}
        for name, parameter in parameters.items():
            parts.setdefault(part(name), {})[name] = parameter
        own = [group | {"part": name} for name in parts for group in groups(parts[name], weight_decay)]
        self.adam = torch.optim.AdamW(own, lr=0.0, betas=BETAS, eps=EPS, fused=device.type == "cuda")

    def step(self, rate: float, factors: Mapping[str, float] = MappingProxyType({})) -> Tensor:
        """One update at learning rate `rate`, times the part's factor where there is one, with the gradients
        added since the last; returns their norm before clipping."""
        parameters = list(self.parameters.values())
        for parameter in parameters:
            if parameter.grad is None:  # no image in the step: the moments must decay all the same
                parameter.grad = torch.zeros_like(parameter)
        sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        for group in self.adam.param_groups:
            group["lr"] = rate * factors.get(group["part"], 1.0)
        self.adam.step()
        self.discard()
        return norm

    def discard(self) -> None:
        """Forget the gradients."""
        self.adam.zero_grad(set_to_none=True)

    def bytes_to_come(self) -> int:
        """Bytes on the device that the first step will allocate and keep: both moments."""
        return 0 if self.adam.state else sum(8 * p.numel() for p in self.parameters.values())

    def state(self) -> dict[str, Tensor]:
        """Values and moments on the CPU: `value.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`."""
        tensors = {f"value.{name}": p.detach().cpu().contiguous() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {
                f"{key}.{name}": value.detach().cpu().contiguous()
                for key, value in self.adam.state.get(parameter, {}).items()
            }
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"value.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            if keys:
                self.adam.state[parameter] = {
                    key: tensors[f"{key}.{name}"].to(self.device, copy=True) for key in keys
                }
