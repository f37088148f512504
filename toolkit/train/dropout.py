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


def dropped(values: Tensor, probability: float) -> Tensor:
    """`values`, each zero with `probability`, otherwise divided by 1 - `probability`."""
    seed = torch.randint(-(1 << 31), 1 << 31, (2,), device=values.device).int()
    kept = hashed(values.numel(), seed).view(values.shape) >= round(probability * (1 << 32)) - (1 << 31)
    return torch.where(kept, values * (1 / (1 - probability)), 0)


class Dropout(nn.Dropout):
    """PyTorch's on the CPU, `dropped` on a GPU."""

    def forward(self, values: Tensor) -> Tensor:
        """values of any shape."""
        return dropped(values, self.p) if self.training and values.is_cuda else super().forward(values)
