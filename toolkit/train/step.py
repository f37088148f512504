"""Loss and gradients of one optimizer step, computed in passes of whatever size fits.

The official code takes the mean over the labelled tokens of each micro-batch of the kit's size, then the mean
over micro-batches. Here every token carries its share of that mean as a weight, so the same gradient comes
from any division into passes: rows are sorted by length, and a pass takes as many as fill it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from toolkit.mgm.layout import TokenRow, expand, stack, to_device
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import tensors
from toolkit.train import distributed
from toolkit.train.dataset import Sample
from toolkit.train.optimizer import AdamW

if TYPE_CHECKING:
    from toolkit.train.zero import Zero


@dataclass(frozen=True)
class Execution:
    """How a step is computed, which changes its result by rounding only.

    pass_tokens: most tokens in a forward pass, padding and image tokens included; a longer row makes a pass
    of its own. checkpointed: decoder layers whose activations are computed again in the backward pass.
    """

    pass_tokens: int
    checkpointed: int = 0


def shares(rows: list[TokenRow], groups: int, group_size: int) -> list[float]:
    """Weight of each labelled token of a row: 1 / (labelled tokens of the row's group x groups); `group_size`
    rows in order make one."""
    weights = []
    for start in range(0, len(rows), group_size):
        group = rows[start : start + group_size]
        labelled = sum(row.predictions for row in group)
        weights += [1.0 / (max(labelled, 1) * groups)] * len(group)
    return weights


def passes(rows: list[TokenRow], pass_tokens: int) -> list[list[int]]:
    """Indices of the rows of each forward pass, longest rows first, at most `pass_tokens` with padding (one
    row at least)."""
    order, groups = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids)), []
    while order:
        count = max(1, pass_tokens // len(rows[order[0]].ids))
        count = -(-len(order) // -(-len(order) // count))  # evenly: 10 rows where 8 fit make two passes of 5
        groups.append(order[:count])
        order = order[count:]
    return groups


def in_step(groups: list[list[int]]) -> list[list[int]]:
    """As many passes as the process with the most has: the largest are cut in two. Processes with as many
    rows always can."""
    count = distributed.largest(len(groups))
    while len(groups) < count:
        largest = max(range(len(groups)), key=lambda number: len(groups[number]))
        rows = groups[largest]
        groups[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return groups


class Stepper:
    """Runs forward and backward passes of `model`; gradients go to `optimizer`."""

    def __init__(
        self,
        model: MGMForCausalLM,
        optimizer: "AdamW | Zero",
        execution: Execution,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.execution, self.device = model, optimizer, execution, device
        self.unlabelled = 0  # rows of the last step without a labelled token

    def run(self, samples: list[Sample], groups: int, group_size: int) -> Tensor:
        """Add the gradients of `samples`, whole groups of a step of `groups`; returns their share of its
        loss, on the device."""
        config = self.model.mgm
        rows = [
            expand(
                torch.tensor(s.input_ids),
                torch.tensor(s.labels),
                self.model.tokens_per_image,
                config.model_max_length,
            )
            for s in samples
        ]
        self.unlabelled = sum(row.predictions == 0 for row in rows)
        weights = shares(rows, groups, group_size)
        total = torch.zeros((), device=self.device)
        self.model.checkpointed = self.execution.checkpointed
        division = passes(rows, self.execution.pass_tokens)
        for chosen in in_step(division) if self.optimizer.lockstep else division:
            parts = ([whole[index] for index in chosen] for whole in (samples, rows, weights))
            loss = self.optimizer.forward(self._loss, *parts)
            if loss.requires_grad:  # text alone does not touch what pretraining trains
                self.optimizer.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, samples: list[Sample], rows: list[TokenRow], weights: list[float]) -> Tensor:
        """Weighted loss of one forward pass."""
        model = self.model
        layout = stack(rows, model.tokens_per_image, model.pad_id, "right")
        positions, targets = layout.predictions()
        token_weights = torch.tensor(weights)[positions // layout.ids.shape[1]]
        positions, targets, token_weights = (
            to_device(part, self.device) for part in (positions, targets, token_weights)
        )
        layout = layout.to(self.device)
        shown = [
            sample.pixels
            for sample, row in zip(samples, rows, strict=True)
            if row.images and sample.pixels is not None
        ]
        if self.optimizer.lockstep and not shown:  # the other processes wait for the projector's gradients
            shown = [np.zeros((model.mgm.image_size_aux, model.mgm.image_size_aux, 3), np.uint8)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tokens = None
            if shown:
                low, high = tensors(to_device(torch.from_numpy(np.stack(shown)), self.device), model.mgm)
                dtype = model.clip.dtype
                tokens = model.image_tokens(low.to(dtype), high.to(dtype, memory_format=torch.channels_last))
            return model.loss(model.embed(layout, tokens), layout, positions, targets, token_weights)
