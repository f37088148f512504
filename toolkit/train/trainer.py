"""The training loop of both stages: micro-batches, accumulation, AdamW, cosine schedule, clipping, exact
resume.

Everything a step depends on follows from (seed, step): the order of samples, dropout, the schedule. A
checkpoint therefore holds trained tensors and optimizer moments only, and a run that was killed ends with the
very weights of one that was not.
"""

import hashlib
import math
import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files import atomic, read_json, sha256, write_json, write_text
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.sampler import conversation_length, modality_length_grouped
from toolkit.processes import asked_to_end
from toolkit.progress import Progress
from toolkit.scales import Stage
from toolkit.train import distributed
from toolkit.train.dataset import Conversations, Sample
from toolkit.train.loader import Steps, workers
from toolkit.train.monitor import Monitor, Start
from toolkit.train.optimizer import MOMENTS, AdamW, Optimizer
from toolkit.train.step import Execution, Stepper
from toolkit.train.strategies.base import Outset, Strategy
from toolkit.train.sweep import row_losses
from toolkit.train.trackers import Trackers

# a checkpoint's files, in the order in which they are written
TENSORS, STATE = "state.safetensors", "state.json"
KINDS = ("value", *MOMENTS, "step")  # tensors of each trained parameter in it


class State(BaseModel):
    """state.json of a checkpoint: steps done, their log lines, how they were computed, what the result
    depends on, hash of the tensors."""

    model_config = ConfigDict(extra="forbid")

    step: int
    lines: list[dict[str, float]]
    unlabelled: int
    execution: Execution
    fingerprint: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class Plan:
    """What one stage will do. micro_batch x accumulation = the scale's global batch; steps as Transformers'
    Trainer counts them: micro-batches left over after the last full accumulation are not trained on.
    Gradients weigh tokens by micro-batches of this size, however large the passes are in which they are
    computed (see step.py)."""

    rows: int
    micro_batch: int
    accumulation: int
    steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    save_steps: int
    seed: int

    @classmethod
    def of(cls, stage: Stage, rows: int, seed: int) -> "Plan":
        """The plan of `stage` for a number of rows on one device; UserError when the batch cannot be
        divided."""
        micro = min(stage.micro_batch, stage.global_batch)
        if stage.global_batch % micro:
            raise UserError(f"global batch {stage.global_batch} is not a multiple of micro-batch {micro}")
        accumulation = stage.global_batch // micro
        steps = stage.epochs * max(1, math.ceil(rows / micro) // accumulation)
        return cls(
            rows,
            micro,
            accumulation,
            steps,
            math.ceil(steps * stage.warmup_ratio),
            stage.learning_rate,
            stage.weight_decay,
            stage.max_grad_norm,
            stage.save_steps,
            seed,
        )

    def rate(self, step: int) -> float:
        """Learning rate after `step` optimizer steps: linear warm-up, then half a cosine to zero. The first
        step is made with rate(0)."""
        if step < self.warmup_steps:
            return self.learning_rate * step / max(1, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    def share(self) -> slice:
        """This process's rows of a step's: whole groups of the kit's micro-batch, dealt out evenly."""
        rank, processes = distributed.rank(), distributed.world_size()
        first, end = (self.accumulation * number // processes for number in (rank, rank + 1))
        return slice(first * self.micro_batch, end * self.micro_batch)


def sample_order(samples: list[dict[str, Any]], plan: Plan, grouped: bool) -> list[int]:
    """Indices in the order of training: random, or grouped by modality and length as the official sampler
    does."""
    generator = torch.Generator().manual_seed(plan.seed)
    if not grouped:
        return torch.randperm(len(samples), generator=generator).tolist()
    # the official sampler draws its inner permutations from the global generator
    torch.manual_seed(plan.seed)
    return modality_length_grouped(
        [conversation_length(row) for row in samples], plan.micro_batch, plan.accumulation, generator
    )


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a process's dropout in a step; of other processes than the first by SHA-256, so that no two
    share a stream."""
    first = seed * 1_000_003 + step
    return first if rank == 0 else int.from_bytes(hashlib.sha256(f"{first} {rank}".encode()).digest()[:8])


class Trainer:
    """Trains a model on `dataset` and keeps `log` and checkpoints in `folder`; of several processes the first
    one writes.

    optimizer: holds the trained parameters. fingerprint: whatever the result depends on;
    a checkpoint with another one is discarded. strategy: the plain training's unless one is given.
    """

    def __init__(
        self,
        model: MGMForCausalLM,
        optimizer: Optimizer,
        dataset: Conversations,
        plan: Plan,
        folder: Path,
        log: str,
        fingerprint: dict[str, Any],
        *,
        grouped: bool,
        device: torch.device,
        strategy: Strategy | None = None,
    ) -> None:
        self.model, self.optimizer, self.dataset, self.plan = model, optimizer, dataset, plan
        self.folder, self.log, self.device = folder, folder / log, device
        self.fingerprint = {
            **fingerprint,
            "plan": asdict(plan),
            "device": device.type,
        }
        self.strategy = strategy or Strategy(plan.seed)
        self.strategy.prepare(model, dataset, device)
        outset = Outset(
            plan.steps,
            plan.micro_batch * plan.accumulation,
            lambda epoch: sample_order(dataset.rows, replace(plan, seed=plan.seed + epoch), grouped),
            lambda: row_losses(model, dataset, device),
        )
        self.order = self.strategy.order(outset)
        self.lines: list[dict[str, float]] = []
        self.unlabelled = 0  # rows so far without a labelled token
        self.execution: Execution | None = None  # that of the run which is continued

    def run(
        self, planned: Callable[[], Execution], start: int, began: Start | None = None
    ) -> dict[str, float]:
        """Train from step `start` to the end; return rows, steps and losses. planned: how a step is computed,
        asked for while the first samples are being made. began: told of the first step, then printed."""
        first = distributed.rank() == 0
        with ExitStack() as stack:
            steps = stack.enter_context(
                closing(Steps(self.dataset, self._shares(start), workers(self.device)))
            )
            self.model.train()
            self.execution = planned()
            stepper = Stepper(self.model, self.optimizer, self.execution, self.device, self.strategy)
            if first:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(self.log, "".join(f"{line}\n" for line in self.lines))
                log = stack.enter_context(self.log.open("a", encoding="utf-8"))
                progress = Progress(f"{self.log.stem} {self.folder.name}", self.plan.steps, start)
                monitor = Monitor(self.folder / "monitor.jsonl")
                monitor.start(start)
                stack.callback(monitor.stop)
                trackers = stack.enter_context(Trackers(self.folder, asdict(self.plan), self.lines))
            ending = stack.enter_context(asked_to_end())
            before = time.perf_counter()
            for step, samples in enumerate(steps, start=start):
                line = self._step(step, samples, stepper)
                self.lines.append(line)
                self.execution = stepper.execution
                # an infinite gradient is clipped to no number, and so are then all weights
                finite = math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])
                if distributed.any_process(ending()) and finite and step + 1 < self.plan.steps:
                    # before anything is printed: who reads it may have been ended by the same signal
                    self._save(step + 1)
                    raise UserError(
                        f"ended by SIGTERM after step {step + 1} of {self.plan.steps}: run the same command "
                        "again, it continues"
                    )
                if first and began and step == start:
                    began.end("first step")
                    print(began, flush=True)
                if first:
                    log.write(f"{line}\n")
                    log.flush()
                    progress.step(note=f"loss {line['loss']:.3f}")
                    rows = self.plan.micro_batch * self.plan.accumulation
                    monitor.add(rows, time.perf_counter() - before)
                    trackers.log(step + 1, line)  # when the step's time is taken
                if not finite:
                    raise UserError(
                        f"the loss is {line['loss']} and the gradient's norm {line['grad_norm']} at step "
                        f"{step + 1}: see {self.log} and check the data"
                    )
                if (step + 1) % self.plan.save_steps == 0 and step + 1 < self.plan.steps:
                    self._save(step + 1)
                before = time.perf_counter()
            losses = [line["loss"] for line in self.lines]
            summary = {
                "train_loss": round(sum(losses) / len(losses), 4),
                "train_samples": self.plan.rows,
                "train_steps": self.plan.steps,
                "epoch": 1.0,
            }
            if first:
                log.write(f"{summary}\n")
                if self.unlabelled:
                    print(
                        f"{self.unlabelled} of {self.plan.rows} rows had no labelled token and trained "
                        "nothing",
                        file=sys.stderr,
                    )
        return {
            "rows": self.plan.rows,
            "rows_without_labels": self.unlabelled,
            "steps": self.plan.steps,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "mean_loss": summary["train_loss"],
        }

    def finish(self) -> None:
        """Drop the checkpoints; call when the stage's outputs are written."""
        for path in [*self._checkpoints().values(), self.folder / ".checkpoint.tmp"]:
            _drop(path)

    def _checkpoints(self) -> dict[int, Path]:
        """The checkpoints in the folder by step, the latest first: what has such a name and such a content,
        nothing else."""
        named = {
            path: re.fullmatch(r"checkpoint-([1-9][0-9]*)", path.name)
            for path in self.folder.glob("checkpoint-*")
        }
        known = {
            int(match[1]): path
            for path, match in named.items()
            if match and not path.is_symlink() and (path / TENSORS).is_file()
        }
        return dict(sorted(known.items(), reverse=True))

    def _shares(self, start: int) -> list[list[int]]:
        """Rows of each step from `start` that this process trains on, or draws from."""
        pool, share = self.strategy.pool, self.plan.share()
        rows = self.plan.micro_batch * self.plan.accumulation * pool
        starts = [step * rows for step in range(start, self.plan.steps)]
        return [self.order[begin + share.start * pool : begin + share.stop * pool] for begin in starts]

    def _step(self, step: int, samples: list[Sample], stepper: Stepper) -> dict[str, float]:
        """One optimizer step; returns its log line, with the fields and rounding of Transformers' Trainer."""
        loss = None
        while loss is None:
            torch.manual_seed(dropout_seed(self.plan.seed, step, distributed.rank()))
            lack = "another process ran out of memory"
            try:
                loss = stepper.run(samples, self.plan.accumulation, self.plan.micro_batch, step)
            except torch.cuda.OutOfMemoryError as error:
                lack = str(error)
            if distributed.any_process(loss is None):
                loss = None
                self._smaller_passes(stepper, lack, step)
        self._count_unlabelled(step, stepper.unlabelled, stepper.rows)
        rate = self.plan.rate(step)
        if isinstance(self.optimizer, AdamW):
            norm = float(self.optimizer.step(rate, stepper.strategy.factors(step / self.plan.steps)))
        else:  # full finetuning, of the division closed, has no parts
            norm = float(self.optimizer.step(rate))
        mean = distributed.total(loss).item()
        epoch = round(
            (step + 1) * self.plan.accumulation / math.ceil(self.plan.rows / self.plan.micro_batch), 2
        )
        return {
            "loss": round(mean, 4),
            "grad_norm": round(norm, 6),
            "learning_rate": self.plan.rate(step + 1),
            "epoch": epoch,
        }

    def _count_unlabelled(self, step: int, unlabelled: int, rows: int) -> None:
        """Add a step's rows without a labelled token, the first of all with a word; UserError when the step
        has no other rows."""
        unlabelled, rows = distributed.total(torch.tensor([unlabelled, rows])).tolist()
        reason = (
            "have no labelled token (a control token such as <eos> in a text, a question longer than the "
            "model reads, no last answer), as the official code sees them too"
        )
        if unlabelled == rows:
            raise UserError(
                f"all {rows} rows of step {step + 1} {reason}: mend the data, nothing would be trained"
            )
        if unlabelled and not self.unlabelled and distributed.rank() == 0:
            print(
                f"warning: {unlabelled} of the {rows} rows of step {step + 1} {reason}: they train nothing",
                file=sys.stderr,
                flush=True,
            )
        self.unlabelled += unlabelled

    def _smaller_passes(self, stepper: Stepper, reason: str, step: int) -> None:
        """After an out-of-memory: forget the step's gradients and halve the passes; UserError when a pass is
        a single row already."""
        self.optimizer.discard()
        torch.cuda.empty_cache()
        smaller = stepper.execution.pass_tokens // 2
        if smaller < self.model.tokens_per_image // 2:
            raise UserError(
                f"step {step + 1} does not fit into the GPU's memory one row at a time: "
                f"{reason.splitlines()[0]}"
            )
        stepper.execution = replace(stepper.execution, pass_tokens=smaller, images=1)
        print(
            f"step {step + 1} ran out of GPU memory: it is repeated, and goes on, with passes of {smaller} "
            "tokens",
            flush=True,
        )

    def _save(self, step: int) -> None:
        """Write checkpoint-{step} under a temporary name, rename it, drop the ones before."""
        tensors = self.optimizer.state()  # all processes take part in gathering it
        if distributed.rank() == 0:
            target, temporary = self.folder / f"checkpoint-{step}", self.folder / ".checkpoint.tmp"
            _drop(temporary)
            temporary.mkdir(parents=True, exist_ok=True)
            with atomic(temporary / TENSORS) as file:
                save_file(tensors, file)
            digest = sha256(temporary / TENSORS)
            state = State(
                step=step,
                lines=self.lines,
                unlabelled=self.unlabelled,
                execution=self.execution,
                fingerprint=self.fingerprint,
                sha256=digest,
            )
            write_json(temporary / STATE, state.model_dump())
            temporary.rename(target)
            for path in self._checkpoints().values():
                if path != target:
                    _drop(path)
        distributed.barrier()

    def resume(self) -> int:
        """Load the latest checkpoint of this very run and how it was computed; return the steps done. Other
        checkpoints are deleted.

        UserError when something that is not a checkpoint has the name of one that this run will write.
        """
        checkpoints = self._checkpoints()
        for step in range(self.plan.save_steps, self.plan.steps, self.plan.save_steps):
            path = self.folder / f"checkpoint-{step}"
            if step not in checkpoints and (
                path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir()))
            ):
                raise UserError(
                    f"{path} is not a checkpoint of a training, and this one will write a checkpoint there: "
                    "move it away"
                )
        distributed.barrier()  # all have looked before the first one deletes
        for step, path in checkpoints.items():
            try:
                state, tensors = self._read(path, step)
            # a crash of the machine may leave a file half-written
            except (UserError, OSError, SafetensorError) as error:
                print(f"{path} cannot be read and is dropped: {error}", file=sys.stderr, flush=True)
                _drop(path)
                continue
            if state.fingerprint != self.fingerprint:
                _drop(path)
                continue
            self.optimizer.load(tensors)
            self.lines, self.unlabelled, self.execution = state.lines, state.unlabelled, state.execution
            if distributed.rank() == 0:
                print(f"continuing {self.folder.name} after step {step}", flush=True)
            return step
        return 0

    def _read(self, path: Path, step: int) -> tuple[State, dict[str, Tensor]]:
        """What a checkpoint holds; UserError when its files lack something or do not belong together."""
        try:
            state = State.model_validate(read_json(path / STATE))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{STATE} is not the state of a training: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from None
        if state.step != step or sum("loss" in line for line in state.lines) != step:
            raise UserError(f"{STATE} is not the state after step {step}")
        if sha256(path / TENSORS) != state.sha256:
            raise UserError(f"{TENSORS} is not the file that {STATE} names")
        tensors = load_file(path / TENSORS)
        if tensors.keys() != {f"{kind}.{name}" for name in self.optimizer.parameters for kind in KINDS}:
            raise UserError(f"{TENSORS} does not hold the tensors that are trained")
        return state, tensors


def _drop(path: Path) -> None:
    """Delete a checkpoint's files, and its folder unless something else lies in it."""
    for file in [
        path / STATE,
        *path.glob(f".{STATE}.*.tmp"),
        *path.glob(f".{TENSORS}.*.tmp"),
        path / TENSORS,
    ]:
        file.unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()
