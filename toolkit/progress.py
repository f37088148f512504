"""Progress of a long stage, one line every few seconds, readable in a terminal and in a log."""

import sys
import time


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
        seconds = round((now - self._start) / max(self.done - self._first, 1) * (self.total - self.done))
        time_left = (
            f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
            if self.done < self.total
            else f"took {now - self._start:.0f} s"
        )
        share = 100 * self.done // max(self.total, 1)
        print(
            f"{self.label}: {self.done}/{self.total} ({share} %), {time_left}{', ' + note if note else ''}",
            file=sys.stderr,
            flush=True,
        )
