"""Patch-info mining as it is here against the order of the official code (keys and values projected for every
candidate).

    PYTHONPATH=. python tests/bench/bench_mining.py

Prints a row for each way: times of forward and backward and, on a GPU, the peak of the memory allocated for
them, as ratios to the official order, and the relative difference of the outputs. On the CPU the sizes are
the tiny world's; on a GPU they are MGM-2B's, in bfloat16.
"""

import argparse
import time
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from toolkit.files import write_json
from toolkit.mgm import mining
from toolkit.mgm.convnext import concatenate
from toolkit.mgm.mining import candidates, mine, projector

CUDA = torch.cuda.is_available()
BATCH, TOKENS, WIDTH, DIMS, SIDE = (
    (8, 576, 1024, (192, 384, 768, 1536), 192) if CUDA else (8, 16, 96, (16, 32, 64, 128), 32)
)


def official_order(
    low: torch.Tensor, maps: list[torch.Tensor], query: nn.Module, aux: nn.Module, val: nn.Module
) -> torch.Tensor:
    """Upsample, project all candidates to keys and values, then attend."""
    windows = candidates(concatenate(maps), low.shape[1])
    question, keys, values = query(low), aux(windows), val(windows)
    scores = question[:, :, None] @ (keys.transpose(2, 3) / keys.shape[-1] ** 0.5)
    return (scores.nan_to_num().softmax(-1) @ values).mean(2)


def reference(low: torch.Tensor, maps: list[torch.Tensor], *modules: nn.Module) -> torch.Tensor:
    """The re-associated products in plain PyTorch."""
    with patch.object(mining, "mining_kernel", None):
        return mine(low, maps, *modules)


def once(
    function, low: torch.Tensor, maps: list[torch.Tensor], modules: tuple[nn.Module, ...]
) -> torch.Tensor:
    """Forward and backward; the output."""
    with torch.autocast(low.device.type, torch.bfloat16, enabled=CUDA):
        output = function(low, maps, *modules)
    output.float().square().mean().backward()
    return output.detach().float()


def measure(function, *arguments, rounds: int = 30) -> tuple[float, int, torch.Tensor]:
    """Median seconds, peak bytes on top of what was there (0 on the CPU), output."""
    output, times = once(function, *arguments), []
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for _ in range(rounds):
        if CUDA:
            torch.cuda.synchronize()
        start = time.perf_counter()
        once(function, *arguments)
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2], torch.cuda.max_memory_allocated() - before if CUDA else 0, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="figures of the fastest way")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device, dtype = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
    low = torch.randn(BATCH, TOKENS, WIDTH, device=device)
    maps = [torch.randn(BATCH, c, SIDE >> i, SIDE >> i, device=device).to(dtype) for i, c in enumerate(DIMS)]
    maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    modules = tuple(projector(width, WIDTH).to(device) for width in (WIDTH, sum(DIMS), sum(DIMS)))
    ways = {"official order": official_order, "re-associated": reference} | (
        {"kernels": mine} if CUDA and mining.mining_kernel else {}
    )
    print(f"{'way':16}{'ms':>10}{'times faster':>14}{'MiB':>10}{'part of it':>12}{'difference':>12}")
    for name, function in ways.items():
        seconds, memory, output = measure(function, low, maps, modules)
        if function is official_order:
            slowest, largest, expected = seconds, memory, output
        share = f"{memory / 2**20:10.0f}{memory / largest:12.3f}" if CUDA else f"{'-':>10}{'-':>12}"
        difference = ((output - expected).norm() / expected.norm()).item()
        print(f"{name:16}{seconds * 1e3:10.2f}{slowest / seconds:14.2f}{share}{difference:12.1e}")
    if arguments.json:
        write_json(arguments.json, {"way": name, "ratio": slowest / seconds, "difference": difference})


if __name__ == "__main__":
    main()
