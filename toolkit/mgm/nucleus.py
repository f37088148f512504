"""Tokens drawn at random: temperature, and nucleus sampling (top-p, arXiv 1904.09751)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.seeds import LIMIT


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; UserError for a number out of range.

    temperature: divides the logits. top_p: share of the probability that the likeliest tokens, among which is
    drawn, make up at least. seed: None takes another one each time. One seed draws the same tokens as long as
    the logits round the same, which other questions beside it may change.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (0 < self.temperature <= 2 and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature is {self.temperature}, top_p {self.top_p}: the one is above 0 and at most 2, "
                "the other above 0 and at most 1"
            )
        if self.seed is not None and not 0 <= self.seed < LIMIT:
            raise UserError(f"seed is {self.seed}: it is from 0 to below 2^63")

    def drawer(self) -> Callable[[Tensor], int]:
        """A function of logits [vocabulary] that draws one answer's tokens, one a call."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)

        def draw(logits: Tensor) -> int:
            # below the largest: of the logits themselves a tiny temperature would make infinities
            below = logits.double() - logits.max()
            shares, tokens = torch.softmax(below / self.temperature, dim=-1).sort(
                descending=True, stable=True
            )
            sums = shares.cumsum(dim=-1)
            nucleus = sums[: int((sums - shares < self.top_p).sum())]
            point = torch.rand((), generator=generator, dtype=torch.float64).to(sums.device) * nucleus[-1]
            return int(tokens[min(int(torch.searchsorted(nucleus, point, right=True)), len(nucleus) - 1)])

        return draw
