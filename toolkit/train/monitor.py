"""What training takes while it runs: memory, power and speed, one JSON line every few seconds in the training
folder's monitor.jsonl.

These numbers differ from run to run: they stand in no record and in no archive. `python -m toolkit report
training` draws them.
"""

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import psutil
import torch

from toolkit.files import read_open_jsonl

try:
    import pynvml  # nvidia-ml-py: only for the power
except ImportError:
    pynvml = None

GIB = 2**30


class Start:
    """Seconds from the start of this process to its first optimizer step, part by part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = psutil.Process().create_time()

    def end(self, part: str) -> None:
        """Note that `part` ends now, and with it all that came since the part before."""
        now = time.time()
        self.parts[part] = now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.parts.items())
        return f"{sum(self.parts.values()):.0f} s from the start to the first step: {parts}"


class Monitor:
    """A thread that appends a line to `path` every `every` seconds, and one when it is stopped. Use as a
    context, or start and stop.

    A line: seconds (of training, over all its runs), steps, samples_per_second (since the line before),
    step_seconds (of a step, with the wait for its samples: the median of this run's but the first), host_gib;
    on a GPU also allocated_gib, reserved_gib, peak_gib (most allocated so far), device_used_gib (by everyone)
    and power_watts where NVML has it. host_gib is the resident memory of this process and its children: pages
    that forked children share count once for each.
    """

    def __init__(self, path: Path, every: float = 10.0) -> None:
        self.path, self.every = path, every
        self._samples = self._steps = 0
        self._seconds: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self, steps: int = 0) -> None:
        """Begin a new file, or, when `steps` were done by a run that was cut off, go on behind that run's
        lines."""
        lines = read_open_jsonl(self.path) if steps else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        # a thread has a current device of its own
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._process = psutil.Process()
        self._steps = steps
        self._last, self._counted = time.perf_counter(), 0
        self._start = self._last - (lines[-1]["seconds"] if lines else 0.0)
        self._thread.start()

    def add(self, samples: int, seconds: float) -> None:
        """Count one more optimizer step, made of `samples` in `seconds`."""
        self._samples += samples
        self._steps += 1
        self._seconds.append(seconds)

    def stop(self) -> None:
        """Write the last line and end the thread."""
        self._ended.set()
        self._thread.join()

    def __enter__(self) -> "Monitor":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                ended = False
                while not ended:
                    ended = self._ended.wait(self.every)
                    file.write(json.dumps(self._line()) + "\n")
                    file.flush()
        except OSError as error:  # a full disk must not end the training before its own files do
            print(f"{self.path} ends here: {error}", file=sys.stderr, flush=True)

    def _line(self) -> dict[str, Any]:
        now, samples = time.perf_counter(), self._samples
        line = {
            "seconds": round(now - self._start, 2),
            "steps": self._steps,
            "samples_per_second": round((samples - self._counted) / (now - self._last), 3),
            "host_gib": round(self._resident() / GIB, 3),
        }
        if later := self._seconds[1:]:  # kernels are compiled in the first
            line["step_seconds"] = round(median(later), 3)
        self._last, self._counted = now, samples
        return line if self._device is None else line | self._gpu(self._device)

    def _resident(self) -> int:
        """Bytes resident in this process and its children."""
        total = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.NoSuchProcess:  # ended since it was listed
                continue
        return total

    @staticmethod
    def _gpu(device: int) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info(device)
        sizes = {
            "allocated_gib": torch.cuda.memory_allocated(device),
            "reserved_gib": torch.cuda.memory_reserved(device),
            "peak_gib": torch.cuda.max_memory_allocated(device),
            "device_used_gib": total - free,
        }
        line = {name: round(size / GIB, 3) for name, size in sizes.items()}
        if pynvml is not None:
            with suppress(pynvml.NVMLError, RuntimeError):  # a part of a GPU has no power reading
                line["power_watts"] = round(torch.cuda.power_draw(device) / 1000, 1)
        return line
