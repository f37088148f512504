"""Loss and gradients of one optimizer step, computed in passes of whatever size fits.

The official code takes the mean over the labelled tokens of each micro-batch of the kit's size, then the mean
over micro-batches. Here every token carries its share of that mean as a weight, so the same gradient comes
from any division into passes: rows are sorted by length, and a pass takes as many as fill it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.mgm.layout import TokenRow, expand, stack, to_device
from toolkit.mgm.loss import token_losses
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import tensors
from toolkit.train import distributed
from toolkit.train.dataset import Sample
from toolkit.train.optimizer import AdamW
from toolkit.train.strategies.base import Item, Pass, Strategy

if TYPE_CHECKING:
    from toolkit.train.zero import Zero

SCORED = 4096  # most tokens of a pass without gradients


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


def expanded(model: MGMForCausalLM, sample: Sample) -> TokenRow:
    """The sample's tokens with its image's, cut at the model's length."""
    ids, labels = torch.tensor(sample.input_ids), torch.tensor(sample.labels)
    return expand(ids, labels, model.tokens_per_image, model.mgm.model_max_length)


def assembled(
    model: MGMForCausalLM,
    items: list[Item],
    device: torch.device,
    step: int = 0,
    *,
    blank: bool = False,
    shrinkage: int = 1,
    tokens: Tensor | None = None,
) -> Pass:
    """The decoder's input of one pass; blank: with an image in any case; shrinkage: see
    `Strategy.shrinkage`; tokens [images, T, d]: of the items' images, where they are known."""
    rows = [item.row for item in items]
    layout = stack(rows, model.tokens_per_image, model.pad_id, "right")
    positions, targets = layout.predictions()
    weights = torch.tensor([item.weight for item in items])[positions // layout.ids.shape[1]]
    positions, targets, weights = (to_device(part, device) for part in (positions, targets, weights))
    layout = layout.to(device)
    shown = [item.sample.pixels for item in items if item.row.images and item.sample.pixels is not None]
    if blank and not shown:
        shown = [np.zeros((model.mgm.image_size_aux, model.mgm.image_size_aux, 3), np.uint8)]
    if shown and tokens is None:
        low, high = tensors(to_device(torch.from_numpy(np.stack(shown)), device), model.mgm)
        high, dtype = F.avg_pool2d(high, shrinkage) if shrinkage > 1 else high, model.clip.dtype
        tokens = model.image_tokens(low.to(dtype), high.to(dtype, memory_format=torch.channels_last))
    return Pass(items, model.embed(layout, tokens), layout, positions, targets, weights, step)


def mixed(device: torch.device) -> torch.autocast:
    """The context that a pass is computed in: bf16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def at_labels(
    model: MGMForCausalLM,
    items: list[Item],
    device: torch.device,
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """For each item what `function` makes of its last hidden states [n, d] at labelled positions, the head's
    weight [V, d] and the labels [n]; on the CPU, without dropout, in passes of SCORED tokens."""
    training, results = model.training, [torch.empty(0)] * len(items)
    model.eval()
    for chosen in passes([item.row for item in items], SCORED):
        with mixed(device):
            part = assembled(model, [items[index] for index in chosen], device)
            hidden = model.decode(part.embeds, part.layout, part.positions)
            values = function(hidden, model.lm_head.weight, part.targets).cpu()
        counts = [items[index].row.predictions for index in chosen]
        for index, value in zip(chosen, values.split(counts), strict=True):
            results[index] = value
    model.train(training)
    return results


class Stepper:
    """Runs forward and backward passes of `model`; gradients go to `optimizer`."""

    def __init__(
        self,
        model: MGMForCausalLM,
        optimizer: "AdamW | Zero",
        execution: Execution,
        device: torch.device,
        strategy: Strategy | None = None,
    ) -> None:
        self.model, self.optimizer, self.execution, self.device = model, optimizer, execution, device
        self.strategy = strategy or Strategy(0)
        self.rows = 0  # of the last step
        self.unlabelled = 0  # of them, those without a labelled token

    def run(self, samples: list[Sample], groups: int, group_size: int, step: int | None = None) -> Tensor:
        """Add the gradients of `samples`, whole groups of a step of `groups`; returns their share of its
        loss, on the device.

        step: of the optimizer; the strategy draws from its samples. None: all are trained on.
        """
        rows = [expanded(self.model, sample) for sample in samples]
        size = group_size if step is None else group_size * self.strategy.pool
        weights = shares(rows, groups, size)
        items = [Item(*parts) for parts in zip(samples, rows, weights, strict=True)]
        if step is not None:
            candidates = [items[start : start + size] for start in range(0, len(items), size)]
            items = [item for part in candidates for item in self.strategy.draw(part, step, self._losses)]
        self.rows, self.unlabelled = len(items), sum(item.row.predictions == 0 for item in items)
        total = torch.zeros((), device=self.device)
        shrinkage = 1 if step is None else self.strategy.shrinkage(step)
        self.model.checkpointed = self.execution.checkpointed
        division = passes([item.row for item in items], self.execution.pass_tokens)
        for chosen in in_step(division) if self.optimizer.lockstep else division:
            part = [items[index] for index in chosen]
            loss = self.optimizer.forward(self._loss, part, step or 0, shrinkage)
            if loss.requires_grad:  # text alone does not touch what pretraining trains
                self.optimizer.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, items: list[Item], step: int, shrinkage: int) -> Tensor:
        """Weighted loss of one forward pass."""
        with mixed(self.device):
            # in lockstep the other processes wait for the projector's gradients
            blank = self.optimizer.lockstep
            part = assembled(self.model, items, self.device, step, blank=blank, shrinkage=shrinkage)
            return self.strategy.loss(self.model, part)

    def _losses(self, items: list[Item]) -> list[float]:
        """Each item's summed loss at present."""
        return [float(part.sum()) for part in at_labels(self.model, items, self.device, token_losses)]
