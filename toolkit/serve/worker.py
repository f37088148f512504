"""The model's own process: the server's may hold Python's lock while requests are read, and the launch of a
pass would wait for it at every kernel."""

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import torch

from toolkit.errors import UserError
from toolkit.mgm.answer import Answerer, Prompts
from toolkit.mgm.generate import Greedy, Prompt, PromptState
from toolkit.mgm.nucleus import Sampling
from toolkit.mgm.room import CHUNK
from toolkit.processes import end_with_parent, received


@dataclass(frozen=True)
class Request:
    """A prompt to be answered. pixels: as `Prompts.pixels` gives them, None without an image. most: new
    tokens. sampling: None for the likeliest tokens. streamed: whether every token is told as it comes."""

    number: int
    prompt: Prompt
    pixels: np.ndarray | None
    most: int
    sampling: Sampling | None
    streamed: bool


@dataclass(frozen=True)
class Update:
    """What has come since the last one: of requests, by number, new tokens and why they ended, "" if they go
    on; near-ties that were run again so far."""

    news: dict[int, tuple[list[int], str]]
    again: int


@dataclass(frozen=True)
class Failure:
    """Why the model failed; nothing more comes."""

    reason: str


@dataclass(eq=False)
class RequestState(PromptState):
    """A request under way. told: new tokens that were sent."""

    streamed: bool = False
    told: int = 0


@contextmanager
def processes(
    loads: Sequence[Callable[[], Answerer]], new_tokens: int
) -> Iterator[list[tuple[Connection, Prompts, str]]]:
    """A process for each model, for `work`: its pipe, and what comes first through it. UserError as `load`
    raises it, and for a process that ends."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process' threads
    started: list[tuple[BaseProcess, Connection]] = []
    try:
        for load in loads:
            here, there = context.Pipe()
            process = context.Process(target=_process, args=(there, load, new_tokens))
            process.start()
            there.close()
            started.append((process, here))
        yield [(pipe, *received(worker, pipe)) for worker, pipe in started]
    finally:
        for worker, _ in started:
            worker.kill()
            worker.join()


def _process(pipe: Connection, load: Callable[[], Answerer], new_tokens: int) -> None:
    end_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):  # which end the server in order
        signal.signal(number, signal.SIG_IGN)
    work(pipe, load, new_tokens)


def work(pipe: Connection, load: Callable[[], Answerer], new_tokens: int) -> None:
    """Load a model; send its `Prompts` and the kind of its device, or a UserError; then answer.

    In come `Request`s, numbers of requests that are cancelled, and None, after which what is under way is
    answered and the pipe closed; out go `Update`s or a `Failure`. new_tokens: of an answer at most.
    """
    with pipe:
        try:
            answerer = load()
            columns = answerer.mgm.model_max_length + new_tokens
            take_memory(answerer.greedy, columns)
        except UserError as error:
            pipe.send(error)
            return
        prompts = Prompts(answerer.tokenizer, answerer.mgm, answerer.tokens_per_image)
        pipe.send((prompts, answerer.device.type))
        Worker(pipe, answerer.greedy).run(columns)


@torch.inference_mode()
def take_memory(greedy: Greedy, columns: int) -> None:
    """Take what requests of `columns` tokens need, before the first comes; UserError where there is less."""
    try:
        greedy.slots(greedy.at_once(columns))
    except (MemoryError, RuntimeError):  # the latter is torch's
        raise UserError(
            f"{greedy.most} requests of {columns} tokens at once do not fit into the memory: lower "
            "--batch-size or --max-new-tokens"
        ) from None


class Worker:
    """Answers what comes through a pipe, as many at once as there are slots: a request joins while others are
    answered, and leaves when it is done."""

    def __init__(self, pipe: Connection, greedy: Greedy) -> None:
        self.pipe, self.greedy = pipe, greedy
        self._waiting: deque[RequestState] = deque()
        self._rows: dict[int, RequestState] = {}  # that have not ended
        self._changed, self._stopping = threading.Condition(), False
        self._most = 0  # answered at once

    def run(self, columns: int) -> None:
        """Answer until there is nothing left and nothing more will come. columns: tokens, prompt and answer,
        of the longest."""
        self._most = self.greedy.at_once(columns)
        reader = threading.Thread(target=self._read, name="requests")
        reader.start()
        try:
            for rows in self.greedy.follow(self._take, columns):
                self._tell(rows)
        except BrokenPipeError:  # the server has gone
            pass
        except BaseException as error:  # whatever it is, nobody may wait for an answer for ever
            reason = str(error).partition("\n")[0] or type(error).__name__
            print(f"the model failed: {reason}", file=sys.stderr, flush=True)
            with suppress(OSError):
                self.pipe.send(Failure(reason))
        reader.join()

    def _read(self) -> None:
        while True:
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):
                message = None
            row: RequestState | None = None
            if isinstance(message, Request):
                row = self._answering(message)
            with self._changed:
                if row:
                    self._waiting.append(row)
                    self._rows[row.number] = row
                elif message is None:
                    self._stopping = True
                elif message in self._rows:
                    self._rows[message].cancelled = True
                self._changed.notify()
            if message is None:
                return

    def _answering(self, request: Request) -> RequestState:
        pixels: Future | None = None
        if request.pixels is not None:
            pixels = Future()
            pixels.set_result(self.greedy.sent(request.pixels))
        draw = request.sampling.drawer() if request.sampling else None
        return RequestState(
            request.number, request.prompt, pixels, request.most, draw, streamed=request.streamed
        )

    def _take(self, free: int) -> list[RequestState]:
        """What waits, if all of it or a whole chunk fits into the free slots; waits itself when nothing is
        under way."""
        with self._changed:
            while True:
                for row in [row for row in self._waiting if row.cancelled]:
                    self._waiting.remove(row)
                    del self._rows[row.number]
                if self._rows or self._stopping:
                    break
                self._changed.wait()
            count = min(len(self._waiting), CHUNK, self._most)
            return [self._waiting.popleft() for _ in range(count if count <= free else 0)]

    def _tell(self, rows: list[RequestState]) -> None:
        news = {}
        with self._changed:
            for row in rows:
                if row.ended:
                    del self._rows[row.number]
                if row.ended or row.streamed or not row.told:
                    news[row.number] = row.new[row.told :], row.ended
                    row.told = len(row.new)
        if news:
            self.pipe.send(Update(news, self.greedy.again))
