"""Samples in the order of training, made by other processes while the model works.

A 768 x 768 image takes a core about 10 ms, most of it for Pillow's resize, and a fast GPU trains on a hundred
a second. The workers write pixels into memory that they share with the trainer: through a pipe, the bytes
would keep the interpreter's lock from the thread that feeds the GPU. The memory is anonymous: /dev/shm holds
64 MB in many containers. tests/bench/bench_loader.py measures all this.
"""

import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.reduction import DupFd
from threading import Thread
from typing import Any

import numpy as np
import torch

from toolkit.errors import UserError
from toolkit.processes import cores
from toolkit.train import distributed
from toolkit.train.dataset import Conversations, Reader, Sample

MOST_WORKERS = 16
WATCHED = 20  # steps
TOLERATED = 0.1  # share of the watched steps' time
STEPS_HELD = 3  # the one that the trainer is about to leave, the one it gets, the one after


def workers(device: torch.device) -> int:
    """Processes that make samples: beside a GPU all cores of its share but one, at most 16; one beside
    training on the CPU."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    return min(max(cores() // processes - 1, 1), MOST_WORKERS) if device.type == "cuda" else 1


class Slots:
    """Memory for `count` images of `side` x `side` pixels that processes share; it takes up pages as they are
    written."""

    def __init__(self, count: int, side: int) -> None:
        descriptor = os.memfd_create("pixels")
        os.truncate(descriptor, max(count, 1) * side * side * 3)
        self.__setstate__((side, descriptor))

    def __getstate__(self) -> tuple[int, Any]:
        return self.side, DupFd(self.descriptor)  # possible only while a process is being started

    def __setstate__(self, state: tuple[int, Any]) -> None:
        self.side, descriptor = state
        self.descriptor = descriptor if isinstance(descriptor, int) else descriptor.detach()
        self.memory = mmap.mmap(self.descriptor, 0)
        weakref.finalize(self, os.close, self.descriptor)

    def __getitem__(self, slot: int) -> np.ndarray:
        """Flat uint8 [side * side * 3], writable; views of it keep it alive."""
        size = self.side * self.side * 3
        return np.frombuffer(self.memory, np.uint8, size, slot * size)


_reader: Reader
_slots: Slots


def _start(reader: bytes, slots: Slots) -> None:
    """Make this process a worker: it leaves interrupts and SIGTERM to its parent, and ends with it or when
    told to by it."""
    global _reader, _slots
    _reader, _slots = pickle.loads(reader), slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    def obey() -> None:
        # A pool of which one worker was killed terminates the others: that one may have held their lock.
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(1)

    for watch in follow, obey:
        Thread(target=watch, daemon=True).start()


def _make(row: dict[str, Any], slot: int | None) -> Sample:
    """The sample of a row; its pixels stay behind in the slot, if there is one."""
    sample = _reader(row)
    if slot is None or sample.pixels is None:
        return sample
    _slots[slot][:] = sample.pixels.reshape(-1)
    return replace(sample, pixels=None)


class Steps:
    """The samples of each optimizer step, in order; iterate once, then close.

    steps: rows of each step, indices into `dataset`. workers: processes; 0 makes the samples here, when they
    are asked for.

    The samples of the next step are made while the trainer has those of one. Their pixels may take as much
    memory as three of the largest steps, 1.4 GB for 256 images of 768 x 768: a place is used again when the
    last reference to its pixels is gone. Someone who keeps more than that gets ordinary arrays, through a
    pipe.

    waited: seconds that the trainer waited for samples, starting the workers included. When that was much of
    the last 20 steps' time beside a GPU, one line on stderr says so. UserError, as the dataset raises it, for
    a row that cannot be used.
    """

    def __init__(self, dataset: Conversations, steps: list[list[int]], workers: int) -> None:
        self.dataset, self.steps, self.workers = dataset, steps, workers
        self.waited = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=WATCHED)
        self._warned = False
        self._beside_gpu = torch.cuda.is_initialized()
        self._pool = None
        if workers:
            count = STEPS_HELD * max(map(len, steps), default=0)
            self._slots, self._free = Slots(count, dataset.read.config.image_size_aux), list(range(count))
            # a fork shares what is imported, but not once CUDA has threads and locks of its own
            context = multiprocessing.get_context("forkserver" if self._beside_gpu else "fork")
            context.set_forkserver_preload([__name__])
            reader = pickle.dumps(dataset.read)  # once: Gemma's tokenizer takes a while
            self._pool = ProcessPoolExecutor(workers, context, _start, (reader, self._slots))
        self._pending = self._submit(steps[0]) if steps else []

    def __iter__(self) -> Iterator[list[Sample]]:
        ended = None
        for number in range(1, len(self.steps) + 1):
            start = time.monotonic()
            try:
                samples = self._collect()
                self._pending = self._submit(self.steps[number] if number < len(self.steps) else [])
            except BrokenProcessPool:
                raise UserError(
                    "a process that prepares images was killed: see whether the machine has enough memory"
                ) from None
            self.waited += time.monotonic() - start
            if ended is not None:  # the first step waits for the workers to start
                self._watch(time.monotonic() - start, time.monotonic() - ended)
            ended = time.monotonic()
            yield samples

    def close(self) -> None:
        """End the workers; what they have not begun is dropped."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _submit(self, step: list[int]) -> list[Any]:
        """Ask for samples: (index, future, slot) of each row, without workers the index alone."""
        if not self._pool:
            return step
        pending = []
        for index in step:
            row = self.dataset.rows[index]
            slot = self._free.pop() if "image" in row and self._free else None
            pending.append((index, self._pool.submit(_make, row, slot), slot))
        return pending

    def _collect(self) -> list[Sample]:
        if not self._pool:
            return [self.dataset[index] for index in self._pending]
        return [self._sample(*parts) for parts in self._pending]

    def _sample(self, index: int, future: Future, slot: int | None) -> Sample:
        try:
            sample = replace(future.result(), index=index)
        except UserError as error:
            raise error from None  # without the worker's traceback
        if slot is None or sample.pixels is not None:
            return sample
        pixels = self._slots[slot]
        weakref.finalize(pixels, self._free.append, slot)
        side = self._slots.side
        return replace(sample, pixels=pixels.reshape(side, side, 3))

    def _watch(self, waited: float, passed: float) -> None:
        """Say once that training waits for images."""
        self._recent.append((waited, passed))
        waited, passed = (sum(values) for values in zip(*self._recent, strict=True))
        if (
            self._beside_gpu
            and not self._warned
            and len(self._recent) == WATCHED
            and waited > TOLERATED * passed
        ):
            self._warned = True
            print(
                f"the GPU waited {waited:.1f} of the last {passed:.1f} s for images, which {self.workers} "
                f"workers on {cores()} cores prepare: give the job more cores ({MOST_WORKERS + 1} at most "
                "are used) or a faster disk",
                file=sys.stderr,
                flush=True,
            )
