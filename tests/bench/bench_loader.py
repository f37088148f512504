"""Samples a second from image files, as the trainer gets them, against float tensors from torch's DataLoader
through /dev/shm.

    PYTHONPATH=. python tests/bench/bench_loader.py [--folder FOLDER] [WORKERS ...]

FOLDER holds stage_1.json (LLaVA rows) and the images that it names; without it, noise of 512 x 512 to 1024 x
768 pixels is drawn. Prints samples/s after the first batch, and milliseconds of processor time for a sample:
of all processes, and of the trainer's own, which has a GPU to feed. `here` makes the samples in the trainer's
process. The DataLoader's workers normalise and make the low resolution too, which the trainer does on its
device: where that is a GPU, the last line says how fast.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from toolkit.files import write_json
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import tensors
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.processes import cores
from toolkit.train.dataset import Conversations
from toolkit.train.loader import Steps

GOLDEN = Path(__file__).parents[1] / "golden" / "mgm"
MICRO_BATCH = 4
CONFIG = MGMConfig(
    language=None,
    clip={"image_size": 336},
    depths=(1,),
    dims=(8,),
    image_size_aux=768,
    image_aspect_ratio="square",
)


def draw(folder: Path, count: int) -> None:
    """stage_1.json and `count` JPEG files of noise on a gradient."""
    random, rows = np.random.default_rng(0), []
    for number in range(count):
        width, height = [(512, 512), (640, 480), (768, 1024), (1024, 768)][number % 4]
        gradient = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
        image = gradient + random.integers(0, 56, (height, width, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
        turns = [
            {"from": "human", "value": "<image>\nwhat is this?"},
            {"from": "gpt", "value": f"noise number {number}"},
        ]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    write_json(folder / "stage_1.json", rows)


def read(folder: Path) -> Conversations:
    """The folder's rows, with the tokenizer of the golden data."""
    return Conversations(folder / "stage_1.json", folder, load_tokenizer(GOLDEN, 2048), CONFIG, "gemma")


class FloatTensors(Dataset):
    """Both resolutions of each sample in float32, 7 + 1.4 MB."""

    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = tensors(torch.from_numpy(self.conversations[index].pixels)[None], CONFIG)
        return low[0], high[0]


def ours(dataset: Conversations, workers: int, step: int = 64, rounds: int = 1) -> Iterator[int]:
    """Numbers of samples as they come, `step` at a time, the data `rounds` times over."""
    rows = [*range(len(dataset))] * rounds
    steps = [rows[start : start + step] for start in range(0, len(rows), step)]
    with closing(Steps(dataset, steps, workers)) as loader:
        for samples in loader:
            yield len(samples)


def float_tensors(dataset: Conversations, workers: int) -> Iterator[int]:
    """Numbers of samples as they come, in micro-batches."""
    loader = DataLoader(
        FloatTensors(dataset),
        MICRO_BATCH,
        num_workers=workers,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )
    yield from (len(low) for low, _ in loader)


def measure(counts: Iterator[int], samples: int) -> tuple[float, float, float]:
    """(samples/s after the first batch, ms of processor time a sample in all processes, and in this one),
    when `samples` have come."""
    this, total, first = psutil.Process(), 0, None
    own = -sum(this.cpu_times()[:2])
    for count in counts:
        first = first or (time.perf_counter(), count)
        total += count
        if total == samples:  # the workers are still there
            seconds = time.perf_counter() - first[0]
            own += sum(this.cpu_times()[:2])
            workers = sum(sum(process.cpu_times()[:2]) for process in this.children(recursive=True))
    return (total - first[1]) / seconds, 1e3 * (own + workers) / total, 1e3 * own / total


def there(dataset: Conversations, rounds: int = 50) -> tuple[float, float]:
    """Milliseconds a sample to stack and move a micro-batch to the GPU, and to make its tensors there."""
    samples = [dataset[index].pixels for index in range(MICRO_BATCH)]
    times = [0.0, 0.0]
    for timed in (False, True):
        for _ in range(rounds):
            start = time.perf_counter()
            pixels = torch.from_numpy(np.stack(samples)).pin_memory().cuda(non_blocking=True)
            torch.cuda.synchronize()
            moved = time.perf_counter()
            tensors(pixels, CONFIG)
            torch.cuda.synchronize()
            if timed:
                times[0] += moved - start
                times[1] += time.perf_counter() - moved
    return 1e3 * times[0] / rounds / MICRO_BATCH, 1e3 * times[1] / rounds / MICRO_BATCH


def table(dataset: Conversations, workers: list[int]) -> tuple[float, float]:
    """Print every measurement; (samples/s, times the DataLoader's) with the last number of workers."""
    print(
        f"{len(dataset)} images, {cores()} "
        f"cores\n{'':<26}{'samples/s':>10}{'ms of processors':>18}{'of the trainer':>16}"
    )

    def line(name: str, counts: Iterator[int]) -> float:
        rate, everywhere, here = measure(counts, len(dataset))
        print(f"{name:<26}{rate:>10.1f}{everywhere:>18.2f}{here:>16.2f}", flush=True)
        return rate

    line("here", ours(dataset, 0))
    for count in workers:
        before = line(f"DataLoader, {count} workers", float_tensors(dataset, count))
        after = line(f"Steps, {count} workers", ours(dataset, count))
        print(f"{'':<26}{after / before:>9.2f}x")
    if torch.cuda.is_available():
        move, make = there(dataset)
        print(f"on the GPU, a sample: stack and move {move:.2f} ms, tensors {make:.3f} ms")
    return after, after / before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workers", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, help="figures of the last number of workers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.folder and not (arguments.folder / "stage_1.json").is_file():
        sys.exit(f"nothing measured: {arguments.folder} holds no stage_1.json")
    with tempfile.TemporaryDirectory() as drawn:
        if not arguments.folder:
            draw(Path(drawn), 200)
        rate, ratio = table(read(arguments.folder or Path(drawn)), arguments.workers)
    if arguments.json:
        write_json(arguments.json, {"samples_per_second": rate, "ratio": ratio})


if __name__ == "__main__":
    main()
