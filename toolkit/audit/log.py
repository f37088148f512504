"""T1: the kit's training logs: does what they say hang together, and could a machine have done it?

The Trainer of transformers writes a dict every `logging_steps` steps and one at the end; DeepSpeed's launcher
writes its command line, with the GPUs in `--world_info`, and stamps its own lines with the time.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from toolkit.audit.script import flags_of
from toolkit.bundle.checks.training import STEPS, implausible, schedule
from toolkit.bundle.findings import WARNING, Finding
from toolkit.contest.ruleset import Numbers
from toolkit.errors import UserError
from toolkit.parse import Malformed, logged
from toolkit.scales import Stage

VALUES = re.compile(r"\{'(?:loss|train_runtime)'[^{}]*\}")
STAMP = re.compile(r"\[(\d{4}(?:-\d\d){2} \d\d(?::\d\d){2}),\d{3}\]")
LAUNCH = re.compile(r"\bcmd = (.+)")
STEPS_DONE = re.compile(r"(?<!\d)\d{1,9}/(\d{1,9}) \[")  # of the progress bar
# Cross-entropy of a uniform guess among Gemma's 256,000 tokens is 12.5; a training that leaves twice that has
# diverged, or its numbers were never losses.
DIVERGED = 2 * math.log(256_000)
RATE = 1e-6  # by how much of the highest a logged learning rate may be off
ROUNDED = 0.02  # by how much rows, seconds and rates, which are logged with three digits, may disagree
REMEDY = "ask for the whole log of the run that made the weights, and run its first steps again"


@dataclass
class Log:
    """What a log says. steps: (line, values) of each dict with a loss. flags: of the trainer's command."""

    steps: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    closing: dict[str, Any] | None = None
    flags: dict[str, str] = field(default_factory=dict)
    gpus: int | None = None
    total: int | None = None  # steps, of the last progress bar
    stamps: list[datetime] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    marked: list[tuple[int, str]] = field(default_factory=list)

    def batch(self) -> int | None:
        """Rows a step, where the command and its GPUs are logged."""
        try:
            per_gpu = int(self.flags["per_device_train_batch_size"])
            return per_gpu * int(self.flags["gradient_accumulation_steps"]) * (self.gpus or 0) or None
        except (KeyError, ValueError):
            return None


def read(text: str, markers: list[str]) -> Log:
    """The log's lines; a progress bar returns to its line's start. UserError for more steps than a training
    has."""
    log = Log()
    for number, line in enumerate(text.replace("\r", "\n").split("\n"), start=1):
        if not log.flags and (match := LAUNCH.search(line)):
            log.flags = flags_of(match[1])
            log.gpus = _gpus(log.flags.get("world_info", ""))
        if match := STAMP.search(line):
            log.stamps.append(datetime.fromisoformat(match[1]))
        if match := STEPS_DONE.search(line):
            log.total = int(match[1])  # the last bar is the training's
        if marks := [marker for marker in markers if marker in line.lower()]:
            log.marked.append((number, marks[0]))
        for match in VALUES.finditer(line):
            try:
                values = logged(match[0])
            except Malformed:
                log.unreadable.append(number)
                continue
            if "loss" in values:
                log.steps.append((number, values))
            else:
                log.closing = values
        if len(log.steps) > STEPS:
            raise UserError(f"more than {STEPS} steps are logged, which no training has")
    return log


def _gpus(world: str) -> int | None:
    """GPUs of `--world_info`: base64 of {"host": [0, 1, …], …}."""
    try:
        hosts = json.loads(base64.urlsafe_b64decode(world))
        return sum(len(cards) for cards in hosts.values())
    except (binascii.Error, ValueError, AttributeError, TypeError):
        return None


def consistent(name: str, log: Log, fixed: Numbers, stage: str, rows: int | None) -> Iterator[Finding]:
    """T1 of one log. fixed: the stage's numbers; rows: that were trained on, where they are known."""

    def finding(message: str, line: int | None = None, **more: Any) -> Finding:
        return Finding("T1", name, message, REMEDY, line=line, **more)

    for line, marker in log.marked[:1]:
        yield finding(f"the line carries the mark {marker!r} of a simulation", line)
    for line in log.unreadable[:1]:
        yield finding("the values cannot be read: a loss that is not finite, or no Trainer wrote them", line)
    if not log.steps:
        yield finding("no step with a loss is logged")
        return
    losses = [values["loss"] for _, values in log.steps]
    if bad := [
        (line, loss)
        for (line, _), loss in zip(log.steps, losses, strict=True)
        if not (isinstance(loss, int | float) and math.isfinite(loss) and 0 < loss <= DIVERGED)
    ]:
        line, loss = bad[0]
        message = (
            f"a loss of {loss}, {len(bad)} of {len(losses)} like it: a guess among all tokens has "
            f"{DIVERGED / 2:.1f}, so the training has diverged or these are not losses"
        )
        yield finding(message, line)
        return
    yield from (finding(*problem) for problem in _counted(log, fixed, rows))
    yield from (finding(*problem) for problem in _scheduled(log, fixed))
    yield from (finding(*problem) for problem in _timed(log, stage))
    lines = [
        values | {"grad_norm": values.get("grad_norm", place)} for place, (_, values) in enumerate(log.steps)
    ]
    if _every(log) == 1 and (problem := implausible(lines)):
        yield finding(problem, log.steps[0][0])
    elif len(losses) > 2 and len(set(losses)) == 1:
        yield finding(f"all {len(losses)} losses are the same", log.steps[0][0])
    if log.closing is None:
        yield finding("the closing line with train_runtime and train_loss is missing: the run did not end")
    if not log.flags:
        message = "the launcher's command is missing, so batch and GPUs are not known"
        yield finding(message, severity=WARNING)


def _every(log: Log) -> int | None:
    """Steps between two logged ones."""
    value = log.flags.get("logging_steps", "1" if log.total == len(log.steps) else "")
    return int(value) if value.isdecimal() and int(value) else None


def _counted(log: Log, fixed: Numbers, rows: int | None) -> Iterator[tuple[str, int | None]]:
    """Steps, rows and batches."""
    batch, every = log.batch(), _every(log)
    if batch and batch != fixed.global_batch:
        yield f"{log.gpus} GPUs make batches of {batch} rows, the kit's have {fixed.global_batch}", None
    if log.total and every and len(log.steps) != log.total // every:
        yield f"{len(log.steps)} steps are logged, one of {every} of {log.total} would be", None
    if rows and log.total and (expected := fixed.epochs * max(1, rows // fixed.global_batch)):
        if not expected <= log.total <= expected + 1:
            yield f"{log.total} steps, {rows} rows in batches of {fixed.global_batch} make {expected}", None
    elif log.total and log.total > 200_000 // fixed.global_batch and fixed.image_aspect_ratio == "square":
        yield f"{log.total} steps of {fixed.global_batch} rows are more than 200,000 rows", None
    epochs = [values.get("epoch", 0) for _, values in log.steps]
    for (line, _), before, after in zip(log.steps[1:], epochs, epochs[1:], strict=False):
        if after < before:
            yield f"the epoch falls from {before} to {after}: these are lines of more than one run", line
            break
    if epochs[-1] > fixed.epochs + 0.01:
        yield f"{epochs[-1]} epochs, the kit trains {fixed.epochs}", log.steps[-1][0]
    if log.closing and log.total and every:
        known = every * len(log.steps)
        mean, losses = log.closing.get("train_loss"), [values["loss"] for _, values in log.steps]
        # what is not logged are the last steps, fewer than `every`
        remaining = mean * log.total - every * sum(losses) if isinstance(mean, int | float) else math.nan
        if known == log.total and not abs(remaining) / log.total <= 1e-3:
            yield f"train_loss is {mean}, the mean of the logged losses {sum(losses) / len(losses):.4f}", None
        elif known < log.total and not 0 <= remaining / (log.total - known) <= DIVERGED:
            yield f"train_loss is {mean}, which does not follow from the logged losses", None


def _scheduled(log: Log, fixed: Numbers) -> Iterator[tuple[str, int | None]]:
    """Learning rates: warm-up and half a cosine."""
    every = _every(log)
    total = log.total or (len(log.steps) * every if every else None)
    if not every or not total or total > STEPS:
        return
    rates = schedule(Stage.model_construct(**fixed.model_dump()), total)
    for place, (line, values) in enumerate(log.steps, start=1):
        given, step = values.get("learning_rate"), place * every
        if not isinstance(given, int | float) or step > total:
            yield f"step {step} of {total} has no learning rate that a schedule could have", line
            return
        # one step late where the Trainer reads the rate before the scheduler has moved on
        if min(abs(given - rate) for rate in rates[max(0, step - 2) : step]) > RATE * fixed.learning_rate:
            yield (
                f"step {step} logs learning rate {given:.4e}, the kit's schedule has {rates[step - 1]:.4e}",
                line,
            )
            return


def _timed(log: Log, stage: str) -> Iterator[tuple[str, int | None]]:
    """Seconds: as stamped, as stated, and as any card could."""
    closing, batch = log.closing or {}, log.batch()
    seconds, rate = closing.get("train_runtime"), closing.get("train_samples_per_second")
    if not isinstance(seconds, int | float) or not isinstance(rate, int | float):
        return
    if not (seconds > 0 and rate > 0):
        return
    if log.total and batch:
        trained = log.total * batch
        if abs(seconds * rate - trained) > max(ROUNDED * trained, batch):
            yield (
                f"{seconds} s at {rate} samples/s are {seconds * rate:.0f} rows, {log.total} steps have "
                f"{trained}",
                None,
            )
    if log.stamps and (passed := (log.stamps[-1] - log.stamps[0]).total_seconds()) + 1 < seconds:
        yield (
            f"{passed:.0f} s lie between the first and the last time stamp, train_runtime is {seconds}",
            None,
        )
    if log.gpus and rate / log.gpus > (most := fastest(stage)):
        yield (
            f"{rate} samples/s on {log.gpus} GPUs, the fastest card could do {most:.0f} with hardly any text",
            None,
        )


@cache
def fastest(stage: str) -> float:
    """Samples/s that the arithmetic of the fastest card of toolkit/plan/cards.yaml allows: an image, eight
    tokens of text, four of them labelled."""
    from toolkit.bench.flops import sample
    from toolkit.bench.synthetic import CONFIGS
    from toolkit.plan.cards import table

    parts = sample(CONFIGS["2B"], "pretrain" if stage == "pretrain" else "full", text=8, labelled=4)
    peak = max(card.tflops for card in table().cards.values())
    return peak * 1e12 / sum(part.total for part in parts.values())
