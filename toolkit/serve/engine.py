"""The event loop's side of a model that answers in a process of its own."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np

from toolkit.mgm.generate import Prompt
from toolkit.mgm.nucleus import Sampling
from toolkit.serve.worker import Failure, Request, Update


@dataclass(eq=False)
class Answering:
    """A chat request's prompt, as `worker.Request` has it, and its answer so far.

    prompt_tokens: with the image's. ended: "stop", "length" or "failed". first: when the first token had
    come, seconds of the monotonic clock. changed: set for every token if `streamed`, or else at the end.
    """

    prompt: Prompt
    pixels: np.ndarray | None
    most: int
    sampling: Sampling | None
    prompt_tokens: int
    streamed: bool = False
    new: list[int] = field(default_factory=list)
    cancelled: bool = False
    ended: str = ""
    first: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """Answers what is submitted. All of it is called in the event loop.

    pipe: to `worker.work`, whose first message has been read. slots: prompts that it answers at once.
    on_failure: called when the model fails. failure: then says why; everything that was under way has ended,
    "failed".
    """

    def __init__(self, pipe: Connection, slots: int, on_failure: Callable[[], None]) -> None:
        self.pipe, self.slots, self.on_failure = pipe, slots, on_failure
        self.failure = ""
        self.generated = 0  # tokens of all answers that ended
        self.again = 0  # near-ties that were run a second time, alone
        self._rows: dict[int, Answering] = {}  # under way
        self._submitted, self._stopping = 0, False
        self._sender = ThreadPoolExecutor(1, "to the model")  # in order, and the event loop never waits
        self._receiver = threading.Thread(target=self._receive, name="from the model", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to tell `loop` what comes."""
        self._loop = loop
        self._receiver.start()

    async def stop(self) -> None:
        """Have what was submitted answered, then end."""
        self._stopping = True
        self._send(None)
        await asyncio.to_thread(self._receiver.join)
        self._sender.shutdown()

    def submit(self, row: Answering) -> int:
        """Have a prompt answered; its number."""
        self._submitted += 1
        number = self._submitted
        self._rows[number] = row
        self._send(Request(number, row.prompt, row.pixels, row.most, row.sampling, row.streamed))
        row.pixels = None
        return number

    def cancel(self, number: int) -> None:
        """Answer no further, if it has not ended."""
        if self._rows.pop(number, None):
            self._send(number)

    @property
    def waiting(self) -> int:
        """Prompts that have no token yet."""
        return len(self._rows) - self.running

    @property
    def running(self) -> int:
        """Prompts that have."""
        return sum(bool(row.first) for row in self._rows.values())

    def _send(self, message: Request | int | None) -> None:
        def send() -> None:
            with suppress(OSError):  # the worker has gone: the receiver says so
                self.pipe.send(message)

        self._sender.submit(send)

    def _receive(self) -> None:
        message: Update | Failure | None
        while True:
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):
                message = None
            self._loop.call_soon_threadsafe(self._apply, message)
            if message is None:
                return

    def _apply(self, message: Update | Failure | None) -> None:
        if isinstance(message, Update):
            self.again = message.again
            for number, (tokens, ended) in message.news.items():
                if number in self._rows:
                    self._grow(number, tokens, ended)
        elif not self.failure and (message or self._rows or not self._stopping):
            self.failure = message.reason if message else "its process ended"
            for number in list(self._rows):
                self._grow(number, [], "failed")
            self.on_failure()

    def _grow(self, number: int, tokens: list[int], ended: str) -> None:
        row = self._rows[number]
        row.new += tokens
        row.ended = ended
        row.first = row.first or time.monotonic()
        if ended:
            self.generated += len(row.new)
            del self._rows[number]
        if ended or row.streamed:
            row.changed.set()
