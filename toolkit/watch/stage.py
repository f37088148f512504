"""What a running job says of itself: the last progress in its log, and of a training also loss and speed."""

import re
from dataclasses import dataclass
from pathlib import Path

from toolkit.plan.predict import TRAINING
from toolkit.progress import last_seen
from toolkit.watch.run import Job

TRAINED = Path("output/training_dirs")
TAIL = 1 << 16  # bytes of a log that are looked at
LOSS = re.compile(r"\{'loss': (-?[\d.e+-]+|nan|inf),.*\}")
SPEED = re.compile(r'\{.*"samples_per_second": ([\d.]+).*\}')


@dataclass(frozen=True)
class Stage:
    """done of total: steps of a training, or what else a job counts. seconds: until they are done. whole:
    they are all that the job does. None: not known."""

    done: int | None = None
    total: int | None = None
    seconds: float | None = None
    whole: bool = False
    loss: float | None = None
    samples_per_second: float | None = None


def stage(job: Job, now: float) -> Stage:
    """What `job` has said by `now`, seconds since the epoch."""
    training = job.rule in TRAINING
    folder = TRAINED / Path(job.name).name
    loss = _last(LOSS, folder / f"{job.rule}.log", job) if training else None
    speed = _last(SPEED, folder / "monitor.jsonl", job) if training else None
    log = Path(job.log)
    seen = last_seen(_tail(log, job)) if job.log else None
    if not seen:
        return Stage(whole=training, loss=loss, samples_per_second=speed)
    seconds = max(0.0, seen.seconds - (now - log.stat().st_mtime))
    return Stage(seen.done, seen.total, seconds, training, loss, speed)


def _tail(path: Path, job: Job) -> str:
    """The end of a file; nothing where it is not there, or was last written before the job."""
    if not path.is_file() or path.stat().st_mtime < job.started:
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().decode(errors="replace")


def _last(pattern: re.Pattern[str], path: Path, job: Job) -> float | None:
    """The number in the last line that is whole and matches."""
    lines = reversed(_tail(path, job).split("\n")[:-1])
    return next((float(match[1]) for line in lines if (match := pattern.fullmatch(line))), None)
