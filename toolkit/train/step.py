"""Loss and gradients of one optimizer step, computed in passes of whatever size fits.

The official code takes the mean over the labelled tokens of each micro-batch of the kit's size, then the mean
over micro-batches. Here every token carries its share of that mean as a weight, so the same gradient comes
from any division into passes: rows are sorted by length, and a pass takes as many as fill it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.mgm.labelled import labelled, mixed, seen, values_at_labels
from toolkit.mgm.layout import TokenRow, expand, to_device
from toolkit.mgm.loss import token_losses
from toolkit.mgm.model import Features, MGMForCausalLM
from toolkit.train import distributed
from toolkit.train.dataset import Sample
from toolkit.train.optimizer import Optimizer
from toolkit.train.strategies.base import Item, Pass, Strategy

SCORED = 4096  # most tokens of a pass without gradients


@dataclass(frozen=True)
class Execution:
    """How a step is computed, which changes its result by rounding only.

    pass_tokens: most tokens in a forward pass, padding and image tokens included; a longer row makes a pass
    of its own. checkpointed: decoder layers whose activations are computed again in the backward pass.
    images: that the towers see at a time, of several passes; those of one pass in any case.
    """

    pass_tokens: int
    checkpointed: int = 0
    images: int = 1


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


def seen_together(parts: list[list[Item]], most: int) -> list[list[list[Item]]]:
    """Runs of passes with at most `most` images each, or of one pass."""
    runs: list[list[list[Item]]] = []
    room = 0
    for part in parts:
        count = len(images(part))
        if not runs or count > room:
            runs.append([])
            room = most
        runs[-1].append(part)
        room -= count
    return runs


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
    tokens: Tensor | None = None,
) -> Pass:
    """The decoder's input of one pass; blank: with an image in any case; tokens [images, T, d]: of the items'
    images, where they are known."""
    pixels = shown(items, device) if tokens is None else None
    if blank and pixels is None:
        side = model.mgm.image_size_aux
        pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device)
    rows = [item.row for item in items]
    part = labelled(model, rows, pixels, device, tokens=tokens)
    weights = to_device(torch.tensor([item.weight for item in items]), device)
    weights = weights[part.positions // part.layout.ids.shape[1]]
    return Pass(**vars(part), items=items, weights=weights, step=step)


def images(items: list[Item]) -> list[np.ndarray]:
    """The pixels of the items' images, each uint8 [S, S, 3]."""
    return [item.sample.pixels for item in items if item.row.images and item.sample.pixels is not None]


def shown(items: list[Item], device: torch.device) -> Tensor | None:
    """The pixels of the items' images, uint8 [images, S, S, 3]; None where there is no image."""
    pixels = images(items)
    return to_device(torch.from_numpy(np.stack(pixels)), device) if pixels else None


def at_labels(
    model: MGMForCausalLM,
    items: list[Item],
    device: torch.device,
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """For each item what `function` makes of its labels, as of `values_at_labels`, in passes of SCORED
    tokens."""
    results = [torch.empty(0)] * len(items)
    for chosen in passes([item.row for item in items], SCORED):
        part = [items[index] for index in chosen]
        rows, pixels = [item.row for item in part], shown(part, device)
        values = values_at_labels(model, rows, pixels, device, function)
        for index, value in zip(chosen, values, strict=True):
            results[index] = value
    return results


class Stepper:
    """Runs forward and backward passes of `model`; gradients go to `optimizer`."""

    def __init__(
        self,
        model: MGMForCausalLM,
        optimizer: Optimizer,
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
        for part, features in self._passes(items, shrinkage):
            loss = self.optimizer.forward(self._loss, part, step or 0, features)
            if loss.requires_grad:  # text alone does not touch what pretraining trains
                self.optimizer.backward(loss)
            total += loss.detach()
        return total

    def _passes(self, items: list[Item], shrinkage: int) -> Iterator[tuple[list[Item], Features | None]]:
        """The items of each pass, and what the towers see of their images where that is known before it."""
        division = passes([item.row for item in items], self.execution.pass_tokens)
        if self.optimizer.lockstep:  # the towers' weights may be shared out, too
            yield from (([items[index] for index in chosen], None) for chosen in in_step(division))
            return
        most = self.execution.images
        for run in seen_together([[items[index] for index in chosen] for chosen in division], most):
            pixels = shown([item for part in run for item in part], self.device)
            if pixels is None:
                yield from ((part, None) for part in run)
                continue
            with mixed(self.device):
                features = seen(self.model, pixels, shrinkage)
            counts = [len(images(part)) for part in run]
            for part, count, own in zip(run, counts, features.split(counts), strict=True):
                yield part, own if count else None

    def _loss(self, items: list[Item], step: int, features: Features | None) -> Tensor:
        """Weighted loss of one forward pass."""
        with mixed(self.device):
            tokens = self.model.tokens_of(features) if features else None
            # in lockstep the other processes wait for the projector's gradients
            blank = self.optimizer.lockstep
            part = assembled(self.model, items, self.device, step, blank=blank, tokens=tokens)
            return self.strategy.loss(self.model, part)

    def _losses(self, items: list[Item]) -> list[float]:
        """Each item's summed loss at present."""
        return [float(part.sum()) for part in at_labels(self.model, items, self.device, token_losses)]
