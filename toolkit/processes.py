"""Processes that work beside this one: they end with it, and the death of a process is a sentence."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from toolkit.errors import UserError

AHEAD = 2  # tasks that wait for each process: it is never idle, and few results are in memory at once


def cores() -> int:
    """Cores that this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0))


@contextmanager
def pool(
    processes: int,
    context: BaseContext | None = None,
    begin: Callable[..., Any] | None = None,
    arguments: tuple = (),
) -> Iterator[ProcessPoolExecutor]:
    """`processes` processes, each of which calls `begin(*arguments)` first. UserError when a process is
    killed."""
    context = context or multiprocessing.get_context()
    try:
        with ProcessPoolExecutor(processes, context, _begin, (begin, *arguments)) as executor:
            yield executor
    except BrokenProcessPool:
        reason = (
            "a process beside this one was killed: see whether the machine has enough memory for so many, "
            "then run the same again"
        )
        raise UserError(reason) from None


def ordered(submit: Callable[[Any], Future], tasks: Iterable[Any], ahead: int) -> Iterator[Any]:
    """The results of tasks in their order; at most `ahead` tasks are taken before their results are."""
    waiting: deque[Future] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin(begin: Callable[..., Any] | None, *arguments: Any) -> None:
    # Ctrl-C reaches everyone; only the first process has something to say
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()
    if begin:
        begin(*arguments)


def received(process: BaseProcess, pipe: Connection) -> Any:
    """The next message of a process. UserError where it sent one, or has ended."""
    try:
        message = pipe.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise UserError(
            f"a process that answers ended with status {process.exitcode}: see above, or whether memory ran "
            "out"
        ) from None
    if isinstance(message, UserError):
        raise message
    return message


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent is killed: what is left over must not go on beside
    the next run."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM ends nothing: the function says whether one came, so that what is under way can be
    finished in order. Clusters send it some 30 s before they take a machine away."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may set what a signal does
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
