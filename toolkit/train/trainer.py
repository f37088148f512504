"""The training loop of both stages: micro-batches, accumulation, AdamW, cosine schedule, clipping, exact resume.

Everything a step depends on follows from (seed, step): the order of samples, dropout, the schedule. A checkpoint therefore holds
trained tensors and optimizer moments only, and a run that was killed ends with the very weights of one that was not.
"""

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolkit.errors import UserError
from toolkit.files import atomic, read_json, write_json, write_text
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.sampler import conversation_length, modality_length_grouped
from toolkit.mgm.text import collate
from toolkit.progress import Progress
from toolkit.scales import Stage

WORKERS = 4  # as in the kit


@dataclass(frozen=True)
class Plan:
    """What one stage will do. micro_batch x accumulation = the scale's global batch; steps as Transformers' Trainer counts them:
    micro-batches left over after the last full accumulation are not trained on."""

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


def sample_order(samples: list[dict[str, Any]], plan: Plan, grouped: bool) -> list[int]:
    """Indices in the order of training: random, or grouped by modality and length as the official sampler does."""
    generator = torch.Generator().manual_seed(plan.seed)
    if not grouped:
        return torch.randperm(len(samples), generator=generator).tolist()
    torch.manual_seed(plan.seed)  # the official sampler draws its inner permutations from the global generator
    return modality_length_grouped([conversation_length(row) for row in samples], plan.micro_batch, plan.accumulation, generator)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)


class Trainer:
    """Trains `parameters` of `model` on `dataset` and keeps `log` and checkpoints in `folder`.

    parameters: name -> trained tensor. fingerprint: whatever the result depends on; a checkpoint with another one is discarded.
    """

    def __init__(
        self,
        model: MGMForCausalLM,
        parameters: dict[str, torch.nn.Parameter],
        dataset: Dataset,
        plan: Plan,
        folder: Path,
        log: str,
        fingerprint: dict[str, Any],
        *,
        grouped: bool,
        device: torch.device,
    ) -> None:
        self.model, self.parameters, self.dataset, self.plan = model, parameters, dataset, plan
        self.folder, self.log, self.device = folder, folder / log, device
        self.fingerprint = {**fingerprint, "plan": asdict(plan), "device": device.type, "torch": torch.__version__}
        self.order = sample_order(dataset.rows, plan, grouped)
        decayed = [p for p in parameters.values() if p.ndim > 1]
        undecayed = [p for p in parameters.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=device.type == "cuda")
        self.lines: list[dict[str, float]] = []

    def run(self) -> dict[str, float]:
        """Train to the end, from the last checkpoint if there is one; return steps, samples and losses."""
        start = self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.log, "".join(f"{line}\n" for line in self.lines))
        progress = Progress(f"{self.log.stem} {self.folder.name}", self.plan.steps, start)
        batches = self._batches(start)
        self.model.train()
        with self.log.open("a", encoding="utf-8") as log:
            for step in range(start, self.plan.steps):
                line = self._step(step, batches)
                self.lines.append(line)
                log.write(f"{line}\n")
                log.flush()
                if not math.isfinite(line["loss"]):
                    raise UserError(f"the loss is {line['loss']} at step {step + 1}: see {self.log} and check the data")
                progress.step(note=f"loss {line['loss']:.3f}")
                if (step + 1) % self.plan.save_steps == 0 and step + 1 < self.plan.steps:
                    self._save(step + 1)
            losses = [line["loss"] for line in self.lines]
            summary = {
                "train_loss": round(sum(losses) / len(losses), 4),
                "train_samples": self.plan.rows,
                "train_steps": self.plan.steps,
                "epoch": 1.0,
            }
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

    def _batches(self, start: int) -> Iterator[dict[str, Tensor]]:
        micro = self.plan.micro_batch
        order = self.order[start * self.plan.accumulation * micro :]
        # on the CPU one worker prepares images while the other core trains; spawned processes would import torch again
        workers = WORKERS if self.device.type == "cuda" else 1
        loader = DataLoader(
            self.dataset,
            micro,
            sampler=order,
            num_workers=workers,
            collate_fn=partial(collate, pad_token_id=self.dataset.tokenizer.pad_token_id, max_length=self.model.mgm.model_max_length),
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else the loader draws from the generator that dropout uses
            pin_memory=self.device.type == "cuda",
        )
        try:
            yield from loader
        except UserError as error:  # raised in a worker, it arrives with the worker's traceback before it
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("toolkit.errors.UserError: ")) from None

    def _step(self, step: int, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
        """One optimizer step; returns its log line, with the fields and rounding of Transformers' Trainer."""
        torch.manual_seed(self.plan.seed * 1_000_003 + step)  # dropout depends on (seed, step) alone
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(step)
        total = 0.0
        for _ in range(self.plan.accumulation):
            batch = {key: value.to(self.device, non_blocking=True) for key, value in next(batches).items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                spliced = self.model.splice(batch["input_ids"], batch["mask"], batch["labels"], batch["images"], batch["images_aux"])
                # the mean over each micro-batch, then over micro-batches, as in the official code
                loss = self.model.loss(spliced) / self.plan.accumulation
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.plan.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        epoch = round((step + 1) * self.plan.accumulation / math.ceil(self.plan.rows / self.plan.micro_batch), 2)
        return {"loss": round(total, 4), "grad_norm": round(norm.item(), 6), "learning_rate": self.plan.rate(step + 1), "epoch": epoch}

    def _save(self, step: int) -> None:
        """Write checkpoint-{step} under a temporary name, rename it, drop the ones before."""
        target, temporary = self.folder / f"checkpoint-{step}", self.folder / ".checkpoint.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors = {f"value.{name}": p.detach().cpu().contiguous() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
        with atomic(temporary / "state.safetensors") as file:
            save_file(tensors, file)
        write_json(temporary / "state.json", {"step": step, "lines": self.lines, "fingerprint": self.fingerprint})
        temporary.rename(target)
        for path in self.folder.glob("checkpoint-[0-9]*"):
            if path != target:
                shutil.rmtree(path)

    def _resume(self) -> int:
        """Load the latest checkpoint of this very run; return the steps done. Others and damaged ones are deleted."""
        found = sorted(self.folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
        for path in found:
            try:
                state, tensors = read_json(path / "state.json"), load_file(path / "state.safetensors")
            except (UserError, OSError, SafetensorError) as error:  # a crash of the machine may leave a file half-written
                print(f"{path} cannot be read and is dropped: {error}", file=sys.stderr, flush=True)
                shutil.rmtree(path)
                continue
            if state["fingerprint"] != self.fingerprint:
                shutil.rmtree(path)
                continue
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(tensors[f"value.{name}"])
                    keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
                    if keys:
                        place = {"step": torch.device("cpu") if self.device.type == "cpu" else self.device}
                        self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"].to(place.get(key, self.device)) for key in keys}
            self.lines = state["lines"]
            print(f"continuing {self.folder.name} after step {state['step']}", flush=True)
            return state["step"]
        return 0
