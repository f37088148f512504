"""Cross-entropy over a large vocabulary without its logits: they are made, used and dropped a few rows at a
time."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

ROWS = 512  # of logits at a time: 256,000 x 512 in bf16 are 250 MiB
FILLED = 128  # divides ROWS; on a GPU the last rows are filled up to a multiple


def probabilities(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(weighted loss, its gradient in the logits, in their type) of logits [n, V]; sums in float32."""
    values = logits.float()
    normaliser = values.logsumexp(-1)
    columns = targets[:, None]
    loss = (weights * (normaliser - values.gather(1, columns).squeeze(1))).sum()
    gradient = (values - normaliser[:, None]).exp() * weights[:, None]
    return loss, (gradient - torch.zeros_like(gradient).scatter(1, columns, weights[:, None])).to(
        logits.dtype
    )


class _CrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass, as in Liger Kernel (arXiv 2410.10989): backward only scales what
    forward found."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        part, multiple = _kernel(hidden.is_cuda)
        count, padding = len(hidden), -len(hidden) % multiple
        hidden, targets, weights = (
            pad(hidden, (0, 0, 0, padding)),
            pad(targets, (0, padding)),
            pad(weights, (0, padding)),
        )
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            # views are compiled apart
            part_loss, gradient = part(hidden[rows] @ weight.T, targets[rows].clone(), weights[rows].clone())
            loss += part_loss
            if d_hidden is not None:
                torch.mm(gradient, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight.addmm_(gradient.T, hidden[rows])
        ctx.save_for_backward(None if d_hidden is None else d_hidden[:count], d_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            *(
                None if gradient is None else gradient.mul_(scale.to(gradient.dtype))
                for gradient in (d_hidden, d_weight)
            ),
            None,
            None,
        )


@cache
def _kernel(cuda: bool) -> tuple[Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], int]:
    """`probabilities`, on a GPU without its float32 intermediates, and the number whose multiples it is given
    rows in.

    How a compiled kernel sums depends on the size that it was compiled for. One for any size would be
    compiled for the first that comes, and a continued run would round otherwise than a whole one; so there is
    one for each of four sizes, and weight 0 fills them up.
    """
    return (torch.compile(probabilities, dynamic=False), FILLED) if cuda else (probabilities, 1)


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights[i] * (-log softmax(weight @ hidden[i])[targets[i]]), a float32 scalar.

    hidden [n, d] and weight [V, d] of one type, targets [n] int64, weights [n] float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return _CrossEntropy.apply(hidden, weight.to(hidden.dtype), targets, weights)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(weight @ hidden[i])[targets[i]], float32 [n]; arguments as for `cross_entropy`."""
    losses = torch.empty(len(hidden), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            logits = (hidden[rows] @ weight.to(hidden.dtype).T).float()
            losses[rows] = logits.logsumexp(-1) - logits.gather(1, targets[rows, None]).squeeze(1)
    return losses
