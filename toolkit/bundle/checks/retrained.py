"""T3: a stage trained again from the packed data, for its first steps or to its end, and the log compared
line by line. A smoothed log, other data than the packed and hidden epochs give other losses from the first
step on.

    python -m toolkit bundle verify submit.zip --retrain finetune --steps all

To the end, the trained tensors are compared too: an adapter that was trained on something else is found even
beside an honest log. Which kind of device a record states does not matter for that: tensors are judged where
the logs agree as two processors of one kind do.
"""

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit.bundle.checks.inputs import base_folders, folder_of
from toolkit.bundle.checks.training import LOG, lora_of
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.bundle.rebuild import ROOT, environment
from toolkit.contest.experiment import Outside
from toolkit.contest.records import Record
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.mgm.weights import Weights
from toolkit.parse import logged
from toolkit.report.figures import log as log_of

# of losses and gradient norms, relative and absolute: another processor of one kind rounds the last printed
# digit, a GPU computes with 8 bits where a CPU has 24
SAME_KIND, OTHER_KIND = (1e-3, 2.1e-4), (0.03, 0.02)
# largest relative distance of a tensor (L2 norms): 7e-6 after the tiny finetuning with AVX2 or none instead
# of AVX-512, 0.4 and more with another seed
APART = 1e-3
REMEDY = "train again, and hand in what that training wrote"
STAGES = ("pretrain", "finetune")


def retrained(
    entry: Entry, stage: str, steps: int | None, folder: Path, remarks: list[str]
) -> Iterator[Finding]:
    """Train `steps` steps of `stage` (None: all) in `folder`, an empty one."""
    record, file = entry.record(stage), log_of(entry, stage)
    if entry.length(file) > LOG:
        return  # T1 says so
    recorded = _lines(entry.path(file))
    wanted = len(recorded) if steps is None else min(steps, len(recorded))
    output = folder / (entry.pretrain if stage == "pretrain" else entry.finetune)
    device, again = _train(entry, stage, folder, output, None if steps is None else wanted)
    same_kind = (device == "cpu") == (record.device == "cpu")
    tolerance = SAME_KIND if same_kind else OTHER_KIND
    pairs = list(zip(recorded[:wanted], again, strict=False))
    exact = sum(first == second for first, second in pairs)
    remarks.append(
        f"T3: {stage}: {exact} of {wanted} logged steps are the same to the last printed digit "
        f"(trained on {record.device}, again on {device}; {tolerance[0]:.1%} or {tolerance[1]} may differ)"
    )
    if len(again) < wanted:
        yield Finding(
            "T3",
            file,
            f"{counted(wanted, 'step is', 'steps are')} logged, training makes {len(again)}",
            REMEDY,
        )
    for step, (first, second) in enumerate(pairs, start=1):
        if key := _differs(first, second, tolerance):
            message = f"step {step} logs {key} {first.get(key)}, training it again gives {second[key]}"
            yield Finding("T3", file, message, REMEDY, line=step)
            return
    if steps is None:
        alike = not any(_differs(first, second, SAME_KIND) for first, second in pairs)
        yield from _trained(entry, record, output, alike, exact == wanted and same_kind, remarks)


def _differs(first: dict[str, float], second: dict[str, float], tolerance: tuple[float, float]) -> str | None:
    """The first value of a step's line that differs by more than `tolerance`, relative and absolute."""
    relative, absolute = tolerance
    for key in ("loss", "grad_norm", "learning_rate"):
        if not math.isclose(first.get(key, math.nan), second[key], rel_tol=relative, abs_tol=absolute):
            return key
    return None


def _trained(
    entry: Entry, record: Record, output: Path, alike: bool, same: bool, remarks: list[str]
) -> Iterator[Finding]:
    """What the training left: the same tensors within APART where the logs are `alike`; where the archive has
    their hash alone, the same bytes where the logs are the `same`."""
    files = [name for name in record.outputs if name.endswith((".bin", ".safetensors"))]
    other = [name for name in files if sha256(output / name) != record.outputs[name].sha256]
    remarks.append(
        f"T3: {record.stage}: {len(files) - len(other)} of {len(files)} files of tensors are the same"
    )
    for name in other:
        file = record.outputs[name].path
        packed = not entry.outside(file)
        if not (alike if packed else same):
            remarks.append(f"T3: {record.stage}: the log differs too much for {name} to be judged")
            continue
        if packed:
            distance = apart(Weights(entry.path(file)), Weights(output / name))
            remarks.append(
                f"T3: {record.stage}: {name} differs by {distance:.1e}, {APART:.0e} may be rounding"
            )
            if distance <= APART:
                continue
        message = "was not left by the training that the log is of, which gives other tensors"
        yield Finding("T3", file, message, REMEDY)


def apart(first: Weights, second: Weights) -> float:
    """The largest distance of two tensors of one name, relative to the second's L2 norm; infinite for other
    names or shapes."""
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in second):
        return math.inf
    distances = [0.0]
    for name in second:
        expected = second[name].double()
        gap, size = (first[name].double() - expected).norm().item(), expected.norm().item()
        distances.append(gap / size if size and math.isfinite(gap) else math.inf if gap else 0.0)
    return max(distances)


def _command(entry: Entry, stage: str, output: Path) -> list[str]:
    """The stage's command with files that are at hand; Outside where one is not."""
    record = entry.record(stage)
    if stage == "pretrain":
        samples, images = (
            entry.path(f"{entry.data}/llava.json"),
            entry.record("data").settings["images"]["path"],
        )
        for name in entry.names(f"{entry.data}/synthetic_images/**/*"):
            entry.path(name)  # a copy beside the rows
    else:
        samples = entry.path(record.inputs["samples"].path)
        images = "/".join(record.inputs["samples"].path.split("/")[:2])
    command = ["train", stage, "--samples", samples, "--images", folder_of(entry, images)]
    for model, folder in base_folders(entry, record).items():
        command += [f"--{model}", folder]
    command += ["--scale", entry.scale.name, "--seed", int(record.settings["seed"])]
    if "base" in record.settings:
        command += ["--base", record.settings["base"]]
    if "strategy" in record.settings:
        command += ["--strategy", record.settings["strategy"]]
    if stage == "finetune":
        entry.path(entry.record_files["pretrain"])  # a copy beside the projector, which its reader asks for
        command += [
            "--projector",
            entry.path(f"{entry.pretrain}/mm_projector.bin"),
            "--division",
            entry.division,
        ]
        if teacher := record.inputs.get("teacher"):
            raise Outside(teacher.path.replace("merge.json", "merged"))  # its weights are not packed
        for key, value in lora_of(record).items():
            command += ["--base" if key == "base" else f"--lora-{key}", value]
    return [str(part) for part in [*command, "--output", output]]


def _train(
    entry: Entry, stage: str, folder: Path, output: Path, steps: int | None
) -> tuple[str, list[dict[str, float]]]:
    """(device, lines of the log) of the stage trained into `output` by a process of its own that works in
    `folder`, ended after so many steps. UserError when it fails."""
    import torch

    log, errors = output / f"{stage}.log", folder / "errors.txt"
    command = [sys.executable, "-m", "toolkit", *_command(entry, stage, output)]
    variables = environment(folder) | {"PYTHONPATH": str(ROOT)}
    with errors.open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.DEVNULL, stderr=said)
        try:
            while process.poll() is None and (steps is None or len(_lines(log)) < steps):
                time.sleep(0.2)
        finally:
            process.kill()  # on SIGTERM it would finish its step and write a checkpoint
            process.wait()
    lines = _lines(log)
    if len(lines) < (steps or 1) or (steps is None and process.returncode):
        last = (errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{stage} cannot be trained again: {last}")
    return "a GPU" if torch.cuda.is_available() else "cpu", lines


def _lines(log: Path) -> list[dict[str, float]]:
    """The steps of a log, those that are written to their end."""
    if not log.is_file():
        return []
    text = log.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1].splitlines()
    return [logged(line) for line in complete if line.startswith("{'loss'")]
