"""The seams of a training in which a learning strategy acts: which rows, in which order, which of them in a
step and with which weight, the size of their images, the loss of a pass, the learning rates of the model's
parts.

What a strategy gives in a seam follows from the seam's arguments, the seed and the weights, never from the
number of processes or from earlier steps. So it keeps no state: a continued run is an undisturbed one.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.mgm.labelled import Labelled
from toolkit.mgm.layout import TokenRow
from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.dataset import Conversations, Sample


@dataclass(frozen=True)
class Item:
    """One row of a step. weight: of each of its labelled tokens in the step's loss."""

    sample: Sample
    row: TokenRow
    weight: float


@dataclass(frozen=True)
class Pass(Labelled):
    """What the decoder computes in one forward pass of training: the items, in order, the `weights` [n],
    float32, of the targets, and the step of the optimizer."""

    items: list[Item]
    weights: Tensor
    step: int


@dataclass(frozen=True)
class Outset:
    """What a training knows before its first step, in a continued run too.

    steps: of the optimizer, of `batch` rows each. shuffled: the plain training's order, of epoch 0, 1, ….
    losses: computes each row's mean loss by the model that the stage starts from, infinite for a row without
    labels.
    """

    steps: int
    batch: int
    shuffled: Callable[[int], list[int]]
    losses: Callable[[], list[float]]


class Strategy:
    """The plain training; a strategy overrides the seams in which it differs.

    seed: of the training. pool: candidates for each row that is trained on.
    """

    pool = 1

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def prepare(self, model: MGMForCausalLM, dataset: Conversations, device: torch.device) -> None:
        """Look at the untrained model and the rows; rows may be replaced, by as many."""

    def order(self, outset: Outset) -> list[int]:
        """Places of the rows in the order of training, `pool` candidates for each row of a step."""
        return outset.shuffled(0)

    def draw(self, group: list[Item], step: int, losses: Callable[[list[Item]], list[float]]) -> list[Item]:
        """What is trained on of the candidates for a micro-batch. losses: each item's summed loss at present.

        The candidates' weights are those of a mean over all of them.
        """
        return group

    def shrinkage(self, step: int) -> int:
        """What the side of the images that the high-resolution tower sees is divided by."""
        return 1

    def loss(self, model: MGMForCausalLM, part: Pass) -> Tensor:
        """The loss of a pass, a float32 scalar."""
        return model.loss(part.embeds, part.layout, part.positions, part.targets, part.weights)

    def part(self, name: str) -> str:
        """The part of the model with a learning rate of its own that a trained parameter belongs to."""
        return ""

    def factors(self, done: float) -> Mapping[str, float]:
        """What the learning rates of parts are multiplied by when a share of the steps is `done`; of other
        parts, by 1."""
        return {}

    def drawn(self, *of: int) -> int:
        """A seed of 64 bits for what is drawn `of` a step, a row, …"""
        text = " ".join(map(str, (type(self).__name__, self.seed, *of)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
