"""The training loop of both stages: micro-batches, accumulation, AdamW, cosine schedule, clipping, exact resume.

Everything a step depends on follows from (seed, step): the order of samples, dropout, the schedule. A checkpoint therefore holds
trained tensors and optimizer moments only, and a run that was killed ends with the very weights of one that was not.
"""

import math
import shutil
import sys
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toolkit.errors import UserError
from toolkit.files import atomic, read_json, write_json, write_text
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.sampler import conversation_length, modality_length_grouped
from toolkit.progress import Progress
from toolkit.scales import Stage
from toolkit.train import distributed
from toolkit.train.dataset import Conversations, Sample
from toolkit.train.loader import Steps, workers
from toolkit.train.monitor import Monitor
from toolkit.train.optimizer import AdamW
from toolkit.train.step import Execution, Stepper

if TYPE_CHECKING:
    from toolkit.train.zero import Zero


@dataclass(frozen=True)
class Plan:
    """What one stage will do. micro_batch x accumulation = the scale's global batch; steps as Transformers' Trainer counts them:
    micro-batches left over after the last full accumulation are not trained on. Gradients weigh tokens by micro-batches of this size,
    however large the passes are in which they are computed (see step.py)."""

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
        """The plan of `stage` for a number of rows on one device; UserError when the batch cannot be divided."""
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
        """Learning rate after `step` optimizer steps: linear warm-up, then half a cosine to zero. The first step is made with rate(0)."""
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
    """Indices in the order of training: random, or grouped by modality and length as the official sampler does."""
    generator = torch.Generator().manual_seed(plan.seed)
    if not grouped:
        return torch.randperm(len(samples), generator=generator).tolist()
    torch.manual_seed(plan.seed)  # the official sampler draws its inner permutations from the global generator
    return modality_length_grouped([conversation_length(row) for row in samples], plan.micro_batch, plan.accumulation, generator)


class Trainer:
    """Trains a model on `dataset` and keeps `log` and checkpoints in `folder`; of several processes the first one writes.

    optimizer: AdamW or Zero, which hold the trained parameters. fingerprint: whatever the result depends on; a checkpoint with another
    one is discarded.
    """

    def __init__(
        self,
        model: MGMForCausalLM,
        optimizer: "AdamW | Zero",
        dataset: Conversations,
        plan: Plan,
        folder: Path,
        log: str,
        fingerprint: dict[str, Any],
        *,
        grouped: bool,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.dataset, self.plan = model, optimizer, dataset, plan
        self.folder, self.log, self.device = folder, folder / log, device
        self.fingerprint = {**fingerprint, "plan": asdict(plan), "device": device.type, "torch": torch.__version__}
        self.order = sample_order(dataset.rows, plan, grouped)
        self.lines: list[dict[str, float]] = []
        self.execution: Execution | None = None  # that of the run which is continued

    def run(self, execution: Execution, start: int) -> dict[str, float]:
        """Train from step `start` to the end; return rows, steps and losses."""
        first = distributed.rank() == 0
        self.execution = execution
        stepper = Stepper(self.model, self.optimizer, execution, self.device)
        self.model.train()
        with ExitStack() as stack:
            steps = stack.enter_context(closing(Steps(self.dataset, self._shares(start), workers(self.device))))
            if first:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(self.log, "".join(f"{line}\n" for line in self.lines))
                log = stack.enter_context(self.log.open("a", encoding="utf-8"))
                progress = Progress(f"{self.log.stem} {self.folder.name}", self.plan.steps, start)
                monitor = Monitor(self.folder / "monitor.jsonl")
                monitor.start(start)
                stack.callback(monitor.stop)
            for step, samples in enumerate(steps, start=start):
                line = self._step(step, samples, stepper)
                self.lines.append(line)
                self.execution = stepper.execution
                if first:
                    log.write(f"{line}\n")
                    log.flush()
                    progress.step(note=f"loss {line['loss']:.3f}")
                    monitor.add(self.plan.micro_batch * self.plan.accumulation)
                if not math.isfinite(line["loss"]):
                    raise UserError(f"the loss is {line['loss']} at step {step + 1}: see {self.log} and check the data")
                if (step + 1) % self.plan.save_steps == 0 and step + 1 < self.plan.steps:
                    self._save(step + 1)
            losses = [line["loss"] for line in self.lines]
            summary = {
                "train_loss": round(sum(losses) / len(losses), 4),
                "train_samples": self.plan.rows,
                "train_steps": self.plan.steps,
                "epoch": 1.0,
            }
            if first:
                log.write(f"{summary}\n")
        return {
            "rows": self.plan.rows,
            "steps": self.plan.steps,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "mean_loss": summary["train_loss"],
        }

    def finish(self) -> None:
        """Drop the checkpoints; call when the stage's outputs are written."""
        for path in self.folder.glob("checkpoint-[0-9]*"):
            shutil.rmtree(path)
        shutil.rmtree(self.folder / ".checkpoint.tmp", ignore_errors=True)

    def _shares(self, start: int) -> list[list[int]]:
        """Rows of each step from `start` that this process trains on."""
        rows, share = self.plan.micro_batch * self.plan.accumulation, self.plan.share()
        starts = [step * rows for step in range(start, self.plan.steps)]
        return [self.order[begin + share.start : begin + share.stop] for begin in starts]

    def _step(self, step: int, samples: list[Sample], stepper: Stepper) -> dict[str, float]:
        """One optimizer step; returns its log line, with the fields and rounding of Transformers' Trainer."""
        loss = None
        while loss is None:
            seed = self.plan.seed * 1_000_003 + step  # dropout depends on seed, step and process alone
            torch.manual_seed(seed if distributed.rank() == 0 else hash((seed, distributed.rank())))
            try:
                loss = stepper.run(samples, self.plan.accumulation, self.plan.micro_batch)
            except torch.cuda.OutOfMemoryError as error:
                lack = str(error)
            if distributed.any_process(loss is None):
                loss = None
                self._smaller_passes(stepper, lack, step)
        norm = self.optimizer.step(self.plan.rate(step))
        loss = distributed.total(loss).item()
        epoch = round((step + 1) * self.plan.accumulation / math.ceil(self.plan.rows / self.plan.micro_batch), 2)
        return {"loss": round(loss, 4), "grad_norm": round(float(norm), 6), "learning_rate": self.plan.rate(step + 1), "epoch": epoch}

    def _smaller_passes(self, stepper: Stepper, reason: str, step: int) -> None:
        """After an out-of-memory: forget the step's gradients and halve the passes; UserError when a pass is a single row already."""
        self.optimizer.discard()
        torch.cuda.empty_cache()
        smaller = stepper.execution.pass_tokens // 2
        if smaller < self.model.tokens_per_image // 2:
            raise UserError(f"step {step + 1} does not fit into the GPU's memory one row at a time: {reason.splitlines()[0]}")
        stepper.execution = replace(stepper.execution, pass_tokens=smaller)
        print(f"step {step + 1} ran out of GPU memory: it is repeated, and goes on, with passes of {smaller} tokens", flush=True)

    def _save(self, step: int) -> None:
        """Write checkpoint-{step} under a temporary name, rename it, drop the ones before."""
        state = self.optimizer.state()  # all processes take part in gathering it
        if distributed.rank() == 0:
            target, temporary = self.folder / f"checkpoint-{step}", self.folder / ".checkpoint.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            with atomic(temporary / "state.safetensors") as file:
                save_file(state, file)
            content = {"step": step, "lines": self.lines, "execution": asdict(self.execution), "fingerprint": self.fingerprint}
            write_json(temporary / "state.json", content)
            temporary.rename(target)
            for path in self.folder.glob("checkpoint-[0-9]*"):
                if path != target:
                    shutil.rmtree(path)
        distributed.barrier()

    def resume(self) -> int:
        """Load the latest checkpoint of this very run and how it was computed; return the steps done. Other checkpoints are deleted."""
        found = sorted(self.folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
        distributed.barrier()  # all have looked before the first one deletes
        for path in found:
            try:
                state, tensors = read_json(path / "state.json"), load_file(path / "state.safetensors")
            except (UserError, OSError, SafetensorError) as error:  # a crash of the machine may leave a file half-written
                print(f"{path} cannot be read and is dropped: {error}", file=sys.stderr, flush=True)
                shutil.rmtree(path, ignore_errors=True)
                continue
            if state["fingerprint"] != self.fingerprint:
                shutil.rmtree(path, ignore_errors=True)
                continue
            self.optimizer.load(tensors)
            self.lines, self.execution = state["lines"], Execution(**state["execution"])
            print(f"continuing {self.folder.name} after step {state['step']}", flush=True)
            return state["step"]
        return 0
