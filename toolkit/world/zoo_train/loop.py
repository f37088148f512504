"""The training loop that all models of the zoo share."""

import json
import sys
import time
from collections.abc import Callable, Iterable

import torch


def train(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[int], dict[str, torch.Tensor]],
    steps: int,
    rate: float,
) -> dict[str, float]:
    """Minimise `loss(step)["loss"]` with AdamW, cosine schedule and 3 % warm-up; return the mean of every
    value over the last 100 steps."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=parameters[0].is_cuda
    )
    warm = max(1, int(0.03 * steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1, warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm)),
        ],
        [warm],
    )
    start = time.monotonic()
    recent: list[dict[str, torch.Tensor]] = []
    for step in range(steps):
        values = loss(step)
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-99:], {key: value.detach() for key, value in values.items()}]
        if (step + 1) % 500 == 0 or step + 1 == steps:
            means = {
                key: round(torch.stack([row[key].float() for row in recent]).mean().item(), 4)
                for key in values
            }
            seconds = round(time.monotonic() - start)
            print(
                json.dumps({"model": name, "step": step + 1, "of": steps, "seconds": seconds, **means}),
                file=sys.stderr,
                flush=True,
            )
    return {"steps": steps, **means}
