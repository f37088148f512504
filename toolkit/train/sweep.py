"""A model's view of all rows of a data set, without training: the processes share the rows out."""

from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor

from toolkit.mgm.loss import token_losses
from toolkit.mgm.model import MGMForCausalLM
from toolkit.progress import Progress
from toolkit.train import distributed
from toolkit.train.dataset import Conversations, Sample
from toolkit.train.loader import Steps, workers
from toolkit.train.step import at_labels, expanded
from toolkit.train.strategies.base import Item

CHUNK = 64  # rows that one process looks at together: their values do not depend on the number of processes


def shared_out(dataset: Conversations, device: torch.device) -> Iterator[list[Sample]]:
    """This process's share of all rows, CHUNK at a time."""
    rows = range(len(dataset))
    chunks = [list(rows[start : start + CHUNK]) for start in rows[::CHUNK]]
    own = chunks[distributed.rank() :: distributed.world_size()]
    progress = Progress("rows looked at before training", sum(map(len, own)))
    with closing(Steps(dataset, own, workers(device))) as steps:
        for samples in steps:
            yield samples
            if distributed.rank() == 0:
                progress.step(len(samples))


def sweep(
    model: MGMForCausalLM,
    dataset: Conversations,
    device: torch.device,
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, list[int]]:
    """What `function` gives at the labelled positions of all rows in order, float32 [n, …], and how many of
    them each row has; `function` as of `at_labels`."""
    counts, values = torch.zeros(len(dataset), dtype=torch.long), {}
    for samples in shared_out(dataset, device):
        items = [Item(sample, expanded(model, sample), 0.0) for sample in samples]
        for item, value in zip(items, at_labels(model, items, device, function), strict=True):
            counts[item.sample.index], values[item.sample.index] = item.row.predictions, value
    counts = distributed.total(counts)
    ends = counts.cumsum(0).tolist()
    width = distributed.largest(max((value.shape[1:].numel() for value in values.values()), default=0))
    whole = torch.zeros(ends[-1], width)
    for index, value in values.items():
        whole[ends[index] - len(value) : ends[index]] = value.reshape(len(value), width)
    return distributed.total(whole), counts.tolist()


def row_losses(model: MGMForCausalLM, dataset: Conversations, device: torch.device) -> list[float]:
    """Each row's mean loss of its labelled tokens, infinite where there is none."""
    losses, counts = sweep(model, dataset, device, token_losses)
    parts = losses.squeeze(1).split(counts)
    return [float(part.mean()) if len(part) else float("inf") for part in parts]
