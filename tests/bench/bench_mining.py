"""Patch-info mining as it is here against the order of the official code (keys and values projected for every candidate).

    PYTHONPATH=. python tests/bench/bench_mining.py

Prints the ratio of forward and backward times at the tiny world's sizes, and the largest relative difference of the outputs.
"""

import time

import torch
from torch import nn

from toolkit.mgm.mining import candidates, mine, projector

BATCH, TOKENS, WIDTH, CHANNELS, SIDE = 8, 16, 96, 240, 32


def official_order(low: torch.Tensor, high: torch.Tensor, query: nn.Module, aux: nn.Module, val: nn.Module) -> torch.Tensor:
    """Project all candidates to keys and values, then attend."""
    windows = candidates(high, low.shape[1])
    question, keys, values = query(low), aux(windows), val(windows)
    scores = question[:, :, None] @ (keys.transpose(2, 3) / keys.shape[-1] ** 0.5)
    return (scores.nan_to_num().softmax(-1) @ values).mean(2)


def milliseconds(function, low, high, modules, rounds: int = 30) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(low, high, *modules).square().mean().backward()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2] * 1e3


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    low, high = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, CHANNELS, SIDE, SIDE)
    modules = projector(WIDTH, WIDTH), projector(CHANNELS, WIDTH), projector(CHANNELS, WIDTH)
    ours, theirs = mine(low, [high], *modules), official_order(low, high, *modules)
    before, after = (
        milliseconds(official_order, low, high, modules),
        milliseconds(lambda low, high, *rest: mine(low, [high], *rest), low, high, modules),
    )
    print(f"official order {before:.1f} ms, re-associated {after:.1f} ms, ratio {before / after:.2f}")
    print(f"largest relative difference {((ours - theirs).abs().max() / theirs.abs().max()).item():.1e}")


if __name__ == "__main__":
    main()
