"""Progress of a long stage, one line every few seconds, readable in a terminal and in a log."""

import re
import sys
import time
from dataclasses import dataclass

LINE = re.compile(r"(.+): (\d+)/(\d+) \(\d+ %\), (?:(\d+):(\d\d):(\d\d) left|took \d+ s)(?:, .*)?")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 0:41:07."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@dataclass(frozen=True)
class Seen:
    """What a line of `Progress` says; seconds: left when it was printed."""

    label: str
    done: int
    total: int
    seconds: int


def last_seen(text: str) -> Seen | None:
    """The last line of `Progress` in a log; None where there is none. A last line without its end is left
    out."""
    for line in reversed(re.split(r"[\r\n]", text)[:-1]):
        if match := LINE.fullmatch(line):
            label, done, total, *parts = match.groups()
            hours, minutes, seconds = (int(part or 0) for part in parts)
            return Seen(label, int(done), int(total), 3600 * hours + 60 * minutes + seconds)
    return None


class Progress:
    """Prints `label: 120/375 (32 %), 0:41 left, loss 3.21` to stderr, at most once in `interval` seconds and
    at the end."""

    def __init__(self, label: str, total: int, done: int = 0, interval: float = 5.0) -> None:
        self.label, self.total, self.done, self.interval = label, total, done, interval
        self._first, self._start = done, time.monotonic()
        self._last = self._start

    def step(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` is shown at the end of the line."""
        self.done += count
        now = time.monotonic()
        if self.done < self.total and now - self._last < self.interval:
            return
        self._last = now
        seconds = (now - self._start) / max(self.done - self._first, 1) * (self.total - self.done)
        time_left = f"{clock(seconds)} left" if self.done < self.total else f"took {now - self._start:.0f} s"
        share = 100 * self.done // max(self.total, 1)
        print(
            f"{self.label}: {self.done}/{self.total} ({share} %), {time_left}{', ' + note if note else ''}",
            file=sys.stderr,
            flush=True,
        )
