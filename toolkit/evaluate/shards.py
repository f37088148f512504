"""The answers of one model, given in this process or shared out among several, one for each GPU.

An answer depends on nothing but its question, so the answers are the same for any number of processes.
"""

import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.benchmarks.questions import Load, Question
from toolkit.errors import UserError
from toolkit.processes import end_with_parent, received

if TYPE_CHECKING:
    from toolkit.mgm.answer import Answerer

# questions -> (number of a question, its answer), as answers come
Stream = Callable[[list[Question]], Iterator[tuple[int, str]]]


@dataclass(frozen=True)
class Settings:
    """How questions are answered. load: a question's image."""

    model: Path
    batch_size: int
    max_new_tokens: int
    load: Load


class Answers:
    """`stream`, the kind of device that answers, and how many near-ties have been answered a second time,
    alone."""

    def __init__(self, stream: Stream, device: str) -> None:
        self.stream, self.device = stream, device
        self.again = 0


@contextmanager
def answers(settings: Settings, gpus: int) -> Iterator[Answers]:
    """Load the model here, or in `gpus` processes with a GPU each where that is more than one.

    UserError where there are fewer GPUs, or a process ends.
    """
    if gpus > 1:
        with _processes(settings, _devices(gpus)) as shared:
            yield shared
    else:
        answerer = _load(settings)

        def stream(questions: list[Question]) -> Iterator[tuple[int, str]]:
            yield from _stream(answerer, questions, settings)
            here.again = answerer.again

        here = Answers(stream, answerer.device.type)
        yield here


def shares(questions: list[Question], processes: int) -> list[list[int]]:
    """Numbers of the questions of each process: those about one image together, as its features are computed
    once, and each image to the process that has fewest."""
    of_image: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        of_image[question.image].append(number)
    shared: list[list[int]] = [[] for _ in range(processes)]
    for numbers in sorted(of_image.values(), key=len, reverse=True):
        min(shared, key=len).extend(numbers)
    return [sorted(numbers) for numbers in shared]


def _load(settings: Settings) -> "Answerer":
    from toolkit.mgm.answer import Answerer  # seconds of importing, so after everything that can fail at once

    return Answerer(settings.model, batch_size=settings.batch_size)


def _stream(answerer: "Answerer", questions: list[Question], settings: Settings) -> Iterator[tuple[int, str]]:
    messages, images = ([getattr(question, name) for question in questions] for name in ("message", "image"))
    return answerer.stream(
        messages, images, lambda number: settings.load(questions[number]), settings.max_new_tokens
    )


# --- several processes


def _devices(gpus: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is in each process. UserError for more than there are."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # asked of the driver: CUDA itself must not be initialised before a fork
    count = torch.cuda.device_count()
    if gpus > count:
        raise UserError(f"--gpus asks for {gpus}, and this machine has {count}")
    names = visible.split(",") if visible else list(map(str, range(count)))
    return names[:gpus]


@contextmanager
def _processes(settings: Settings, devices: list[str]) -> Iterator[Answers]:
    # a fork has `load`, which no pipe carries, and must come before CUDA's threads
    context = multiprocessing.get_context("fork")
    started: list[tuple[ForkProcess, Connection]] = []
    try:
        for device in devices:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(settings, device, there), daemon=True)
            process.start()
            there.close()
            started.append((process, here))
        kinds = {received(process, pipe) for process, pipe in started}
        again: Counter[int] = Counter()

        def stream(questions: list[Question]) -> Iterator[tuple[int, str]]:
            parts = shares(questions, len(started))
            for (_, pipe), numbers in zip(started, parts, strict=True):
                pipe.send([questions[number] for number in numbers])
            busy: dict[Any, int] = {pipe: rank for rank, (_, pipe) in enumerate(started)}
            while busy:
                for ready in wait(list(busy)):
                    rank = busy[ready]
                    message = received(*started[rank])
                    if isinstance(message, int):  # the end: its near-ties
                        again[rank] = message
                        shared.again = again.total()
                        del busy[ready]
                    else:
                        number, text = message
                        yield parts[rank][number], text

        shared = Answers(stream, kinds.pop())
        yield shared
    finally:
        for process, pipe in started:
            pipe.close()
            process.kill()
            process.join()


def _serve(settings: Settings, device: str, pipe: Connection) -> None:
    """A process: the kind of device, then for each list of questions its answers and the number of near-ties
    so far; a UserError in place of any."""
    end_with_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        answerer = _load(settings)
        pipe.send(answerer.device.type)
        while True:
            questions = pipe.recv()
            for answer in _stream(answerer, questions, settings):
                pipe.send(answer)
            pipe.send(answerer.again)
    except EOFError:
        pass
    except UserError as error:
        pipe.send(error)
