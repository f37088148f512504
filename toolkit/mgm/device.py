"""What is computed where, and with how many threads."""

import torch

# sums split over threads round differently: one thread gives the same bits on any number of cores
CPU_THREADS = 1


def choose_device(device: str = "auto") -> torch.device:
    """`auto` takes the first CUDA device where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
