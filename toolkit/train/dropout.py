"""Dropout for LoRA (arXiv 1207.0580) whose random numbers cost a GPU little.

PyTorch draws each by ten rounds of Philox and keeps a byte of it for the backward pass. Here it is a hash of
its place and of a 64-bit seed: few enough operations to be done again in the backward pass. Nothing is
kept.
"""

import torch
from torch import Tensor, nn

# of Ellis' hash `lowbias32`, found by search for the least bias between bits
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)


def hashed(count: int, seed: Tensor) -> Tensor:
    """`count` int32 [count] whose upper bits look random and independent, from `seed` [2] int32."""
    values = torch.arange(count, dtype=torch.int32, device=seed.device) + seed[0]
    values = (values ^ (values >> 16)) * FIRST ^ seed[1]
    return (values ^ (values >> 15)) * SECOND


def drawn(device: torch.device) -> Tensor:
    """A seed of `hashed` by the device's generator."""
    return torch.randint(-(1 << 31), 1 << 31, (2,), device=device).int()


def least_kept(probability: float) -> int:
    """The least hash of what is kept, where a share of `probability` is dropped."""
    return round(probability * (1 << 32)) - (1 << 31)


def seeded(values: Tensor, probability: float, seed: Tensor) -> Tensor:
    """`values`, each zero with `probability`, otherwise divided by 1 - `probability`; a seed drops the same
    places again."""
    kept = hashed(values.numel(), seed).view(values.shape) >= least_kept(probability)
    return torch.where(kept, values * (1 / (1 - probability)), 0)


def dropped(values: Tensor, probability: float) -> Tensor:
    """`seeded` by the device's generator."""
    return seeded(values, probability, drawn(values.device))


class Dropout(nn.Dropout):
    """PyTorch's on the CPU, `dropped` on a GPU."""

    def forward(self, values: Tensor) -> Tensor:
        """values of any shape."""
        return dropped(values, self.p) if self.training and values.is_cuda else super().forward(values)
