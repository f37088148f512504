"""Where the time of a training step goes: the functions of its parts, timed on the device, in a step of its
own."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from toolkit.bench.flops import synchronize
from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.optimizer import Optimizer


class Stopwatch:
    """Time on the device spent in wrapped functions, each without those called inside it; what lies outside
    all is "rest"."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stack = ["rest"]
        self.marks: list[tuple[str, Any]] = []

    def mark(self) -> None:
        """A point in time at which the running part changes; the name is that of the part which ends here."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((self.stack[-1], event))
        else:
            self.marks.append((self.stack[-1], time.perf_counter()))

    def wrapped(self, part: str, function: Callable) -> Callable:
        """`function`, timed as `part`."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self.mark()
            self.stack.append(part)
            try:
                return function(*arguments, **keywords)
            finally:
                self.mark()
                self.stack.pop()

        return timed

    def shares(self) -> dict[str, float]:
        """Each part's share of the time between the first mark and the last."""
        synchronize(self.device)
        spent: Counter[str] = Counter()
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            spent[part] += before.elapsed_time(after) if self.device.type == "cuda" else after - before
        return {part: seconds / spent.total() for part, seconds in spent.most_common()}


@contextmanager
def timed_parts(watch: Stopwatch, model: MGMForCausalLM, optimizer: Optimizer) -> Iterator[None]:
    """The parts of a step, wrapped for as long as the context lasts; "loss" holds the logits and, in this
    model, their gradient."""
    parts = {
        "CLIP": (model, "clip_features"),
        "ConvNeXt": (model, "aux_maps"),
        "mining": (model, "fuse"),
        "projector": (model.model.mm_projector, "forward"),
        "decoder forward": (model, "decode"),
        "loss": (model, "loss"),
        "backward": (optimizer, "backward"),
        "optimizer": (optimizer, "step"),
    }
    for part, (owner, name) in parts.items():
        setattr(owner, name, watch.wrapped(part, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in parts.values():
            delattr(owner, name)
