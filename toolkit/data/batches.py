"""Model batches of one fixed shape, prepared ahead of the model: what the operators that run a model share.

The last digits of a floating-point sum depend on the shape of what is computed together. So a model always
gets `rows_at_once` rows, a short batch filled up with its last row, and on a CPU one thread: then neither the
rows beside a row nor their number nor the number of processes reaches its result. Beside a GPU, processes of
their own decode images and make tokens while the model works.
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from toolkit import images
from toolkit.files import read_json
from toolkit.processes import cores

Inputs = dict[str, torch.Tensor]  # arguments of a model
KINDS = {  # of models: the classes that a configuration may name
    "CLIP": r"CLIPModel",
    "BLIP for matching": r"BlipForImageTextRetrieval",
    "OWL-ViT": r"OwlViTForObjectDetection",
    "a captioner": r"\w+(Generation|ImageTextToText|Vision2Seq|CausalLM|EncoderDecoderModel)",
    "a causal language model": r"\w+(ForCausalLM|LMHeadModel)",
    "an MGM": r"(MGM|MiniGemini)\w*ForCausalLM",
    "an image classifier": r"\w+ForImageClassification",
    "a text classifier": r"\w+ForSequenceClassification",
    "an aesthetics predictor": r"AestheticsPredictor\w*",
    "an encoder of sentences": r"\w*(Bert|Roberta|BERTa|MPNet|Electra|Deberta)\w*",
}
PIECE = 32  # rows that a process prepares at a time: the first batch is not long in coming
MOST_WORKERS = 16


def default_rows(cuda: bool) -> int:
    """Rows at once where a recipe does not say: what keeps a large GPU busy, or one core's caches warm."""
    return 256 if cuda else 16


def model_folder(folder: str, kind: str) -> str:
    """`folder`. OSError at once, and not from a worker, if no model lies there, or by its configuration none
    of `kind`, a key of KINDS; loading is left to who first needs it."""
    if not Path(folder, "config.json").is_file():
        raise OSError(f"{folder} holds no model: there is no config.json in it")
    config = read_json(Path(folder, "config.json"))
    names = config.get("architectures") if isinstance(config, dict) else None
    if isinstance(names, list) and names and not re.fullmatch(KINDS[kind], str(names[0])):
        raise OSError(f"{folder} holds a {names[0]!s:.60}, where {kind} is expected: name another model")
    return folder


def padded(length: int, least: int = 32) -> int:
    """`length` rounded up to `least` times a power of two: rows that are padded to the same length can be
    computed together."""
    while least < length:
        least *= 2
    return least


def compute(
    items: Sequence[Any],
    prepare: Callable[[list[Any]], Inputs],
    model: Callable[[Inputs], list[Any]],
    rows_at_once: int,
    device: torch.device,
    group: Callable[[Any], Hashable] = lambda item: None,
) -> list[Any]:
    """The model's result for every item, in the order of `items`.

    prepare: tensors of some items; their first dimensions add up when pieces are joined. It runs in other
    processes beside a GPU. model: results of exactly `rows_at_once` rows, on `device`. group: only items of
    equal group are computed together.
    """
    groups = defaultdict(list)
    for position, item in enumerate(items):
        groups[group(item)].append(position)
    batches = [
        rows[start : start + rows_at_once]
        for rows in groups.values()
        for start in range(0, len(rows), rows_at_once)
    ]
    size = PIECE if device.type == "cuda" else rows_at_once
    pieces = []
    for rows in batches:
        filled = rows + rows[-1:] * (rows_at_once - len(rows))
        pieces.append(
            [[items[row] for row in filled[start : start + size]] for start in range(0, rows_at_once, size)]
        )
    results: list[Any] = [None] * len(items)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if device.type == "cuda" else 1)
    try:
        joined = _joined(pieces, prepare, device)
        for rows, inputs in zip(batches, _ahead(joined) if device.type == "cuda" else joined, strict=True):
            with torch.inference_mode():
                # what filled the batch up is left out
                for row, result in zip(rows, model(inputs), strict=False):
                    results[row] = result
    finally:
        torch.set_num_threads(threads)
    return results


def image_inputs(processor: Any, paths: list[str]) -> Inputs:
    """What a model that reads images alone gets of some files."""
    return dict(processor(images=[images.load(path) for path in paths], return_tensors="pt"))


def _joined(
    batches: list[list[list[Any]]], prepare: Callable[[list[Any]], Inputs], device: torch.device
) -> Iterator[Inputs]:
    """What `prepare` makes of each batch, given in pieces, on `device`."""
    prepared = _prepared(list(itertools.chain.from_iterable(batches)), prepare, device)
    for batch in batches:
        tensors = list(itertools.islice(prepared, len(batch)))
        yield {
            name: torch.cat([part[name].to(device, non_blocking=True) for part in tensors])
            for name in tensors[0]
        }


def _ahead(inputs: Iterator[Inputs]) -> Iterator[Inputs]:
    """The same. A thread receives the next batch while the model has this one."""
    with ThreadPoolExecutor(1) as thread:
        batch = next(inputs, None)  # not by the thread: it starts processes
        while batch is not None:
            coming = thread.submit(next, inputs, None)
            yield batch
            batch = coming.result()


class _Pieces(Dataset):
    """Prepared pieces as bytes: tensors would go through /dev/shm, which holds 64 MB in many containers."""

    def __init__(self, pieces: list[list[Any]], prepare: Callable[[list[Any]], Inputs]) -> None:
        self.pieces, self.prepare = pieces, prepare

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, tuple]:
        inputs = self.prepare(self.pieces[index])
        return {
            name: (value.shape, value.dtype, value.contiguous().flatten().view(torch.uint8).numpy())
            for name, value in inputs.items()
        }


def _prepared(
    pieces: list[list[Any]], prepare: Callable[[list[Any]], Inputs], device: torch.device
) -> Iterator[Inputs]:
    """What `prepare` makes of each piece, in order."""
    if device.type != "cuda":
        yield from map(prepare, pieces)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not survive the fork
    workers = max(1, min(cores() - 1, MOST_WORKERS, len(pieces)))
    loader = DataLoader(
        _Pieces(pieces, prepare),
        batch_size=None,
        num_workers=workers,  # each on one thread, as torch sets them up
        prefetch_factor=3,
        collate_fn=lambda piece: piece,
        # the processor and what is imported are there at once; no worker touches CUDA
        multiprocessing_context="fork",
    )
    for piece in loader:
        yield {
            name: torch.from_numpy(data).view(dtype).view(shape)
            for name, (shape, dtype, data) in piece.items()
        }
