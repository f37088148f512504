"""A schedule from less to more: decoder layers join the training one by one, and rows of text alone come
later than rows with an image.

Layers as in gradual unfreezing (Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text
Classification", arXiv 1801.06146): projector and mining modules learn from the first step, the last decoder
layer's adapter with them, and the others follow, the first layer last, at equal distances within THAW of the
steps; before its turn a layer's learning rate is 0. Rows: where the share r is text alone, that of a step
grows from 0 to 2r / (1 + r); each row is seen once. Batches are not grouped by modality and length.
"""

import re
from collections.abc import Mapping

import numpy
import torch

from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.dataset import Conversations
from toolkit.train.strategies.base import Outset, Strategy

THAW = 0.5  # of the steps, within which all layers have joined
LAYER = re.compile(r"\.layers\.(\d+)\.")


class Progressive(Strategy):
    """Order of the rows and learning rates of the layers."""

    def prepare(self, model: MGMForCausalLM, dataset: Conversations, device: torch.device) -> None:
        self.layers = len(model.model.layers)
        self.text_alone = numpy.array(["image" not in row for row in dataset.rows])

    def order(self, outset: Outset) -> list[int]:
        times = numpy.random.default_rng(self.drawn()).random(len(self.text_alone))
        return numpy.argsort(numpy.where(self.text_alone, times**0.5, times), kind="stable").tolist()

    def part(self, name: str) -> str:
        layer = LAYER.search(name)
        return layer[1] if layer and "lora_" in name else ""

    def factors(self, done: float) -> Mapping[str, float]:
        return {
            str(layer): float(done >= THAW * (self.layers - 1 - layer) / self.layers)
            for layer in range(self.layers)
        }
