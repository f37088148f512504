"""The thread that owns the model: requests join while others are answered, and leave when they are done.

Event loop and thread meet in three places: the queue, under a lock; a row's lists, which the thread fills and
the loop reads; and `changed`, which the thread has the loop set.
"""

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from toolkit.mgm.answer import Answerer
from toolkit.mgm.device import CPU_THREADS
from toolkit.mgm.generate import CHUNK, PromptState


@dataclass(eq=False)
class Answering(PromptState):
    """A request's prompt. streamed: whether `changed` is set for every token, or at the end only. first: when
    the first token had come, seconds of the monotonic clock."""

    prompt_tokens: int = 0
    streamed: bool = False
    first: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """Answers what is submitted, as many at once as the answerer has slots.

    columns: tokens, prompt and answer, of the longest. on_failure: called in the event loop when the model
    fails. failure: then says why; everything that was under way has ended, "failed".
    """

    def __init__(self, answerer: Answerer, columns: int, on_failure: Callable[[], None]) -> None:
        self.greedy, self.columns, self.on_failure = answerer.greedy, columns, on_failure
        self.failure = ""
        self.generated = 0  # tokens of all answers that ended
        self._waiting: deque[Answering] = deque()
        self._running: set[Answering] = set()
        self._arrived, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer; `loop` is told of what changes."""
        self._loop = loop
        self._thread.start()

    async def stop(self) -> None:
        """Answer what was submitted, then end."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        await asyncio.to_thread(self._thread.join)

    def submit(self, row: Answering) -> None:
        """Put a prompt into the queue; `cancelled`, set at any time, takes it out again."""
        with self._arrived:
            self._waiting.append(row)
            self._arrived.notify()

    @property
    def waiting(self) -> int:
        """Prompts that have no slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Prompts in slots, or between two."""
        return len(self._running)

    def _take(self, free: int) -> list[Answering]:
        """What waits, if all of it or a whole chunk fits into the free slots; waits itself when nothing is
        under way."""
        with self._arrived:
            while True:
                self._waiting = deque(row for row in self._waiting if not row.cancelled)
                if self._waiting or self._running or self._stopping:
                    break
                self._arrived.wait()
            count = min(len(self._waiting), CHUNK, self.greedy.batch_size)
            rows = [self._waiting.popleft() for _ in range(count if count <= free else 0)]
            self._running.update(rows)
            return rows

    def _run(self) -> None:
        torch.set_num_threads(CPU_THREADS)  # of this thread
        try:
            for rows in self.greedy.follow(self._take, self.columns):
                self._tell(rows)
        except BaseException as error:  # whatever it is, nobody may wait for an answer for ever
            with self._arrived:
                self.failure = str(error).partition("\n")[0] or type(error).__name__
                rows = [*self._running, *self._waiting]
                self._waiting.clear()
            for row in rows:
                row.ended = "failed"
            print(f"the model failed: {self.failure}", file=sys.stderr, flush=True)
            self._tell(rows)
            self._loop.call_soon_threadsafe(self.on_failure)

    def _tell(self, rows: list[Answering]) -> None:
        ended = [row for row in rows if row.ended]
        self._running.difference_update(ended)
        self.generated += sum(len(row.new) for row in ended)
        changed, now = [], time.monotonic()
        for row in rows:
            row.first = row.first or now
            if row.ended or row.streamed:
                changed.append(row)
        if changed:
            self._loop.call_soon_threadsafe(_wake, changed)


def _wake(rows: list[Answering]) -> None:
    for row in rows:
        row.changed.set()
