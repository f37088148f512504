"""T1, M1: the logs show the training that the records and the scale table state; the merge is proved."""

import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from toolkit.bundle.checks.inputs import BASE, first_file
from toolkit.bundle.checks.layout import tensor_names
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.config import STRATEGIES
from toolkit.contest.records import Record
from toolkit.counted import counted
from toolkit.parse import Malformed, logged
from toolkit.scales import Stage

ROUNDED = 1.01e-4  # losses and their mean are logged with four digits
# bytes of a log, and steps, that are read: 200,000 rows make 800 steps
LOG, STEPS = 1 << 23, 100_000
# steps from which on a log is judged; the median bend of the losses, |a - 2b + c| / b, was 0.2 to 1.2 at the
# tiny scale. Batches of 256 rows are 6 times less noisy than batches of 8
JUDGED, SMOOTH = 20, 0.003
SETTINGS = ("global_batch", "learning_rate", "weight_decay", "max_grad_norm")


def logs(entry: Entry) -> Iterator[Finding]:
    """T1 for both stages."""
    if entry.scale.name not in entry.rules.scales:
        file = entry.record_files["pretrain"]
        message = f"scale {entry.scale.name} is not one of {', '.join(entry.rules.scales)}"
        yield Finding("T1", file, message, "train at an allowed scale")
    if entry.division not in entry.rules.divisions:
        file = entry.record_files["finetune"]
        message = f"division {entry.division} is not one of {', '.join(entry.rules.divisions)}"
        yield Finding("T1", file, message, "finetune in an allowed one")
        return
    pretrain, finetune = entry.record("pretrain"), entry.record("finetune")
    for record in (pretrain, finetune):
        yield from _strategy(entry, record)
    yield from _commands(entry, pretrain, finetune)
    yield from _adapter(entry, finetune)
    yield from _settings(pretrain, entry.scale.pretrain, entry)
    yield from _settings(finetune, entry.scale.finetune[entry.division], entry)
    trained, rows = f"{entry.data}/llava.json", pretrain.results["rows"]
    if not entry.outside(trained) and rows != (count := len(entry.json(trained))):
        message = f"the record says {counted(rows, 'row')}, llava.json has {count}"
        yield Finding("T1", pretrain.file, message, "pretrain again on this data")
    if rows > entry.rules.cap:
        message = f"{rows} rows, the cap is {entry.rules.cap}"
        yield Finding("T1", pretrain.file, message, "convert with --cap")
    instructions = finetune.inputs["samples"].path
    if not entry.outside(instructions) and finetune.results["rows"] != (
        count := len(entry.json(instructions))
    ):
        message = f"the record says {counted(finetune.results['rows'], 'row')}, {instructions} has {count}"
        yield Finding("T1", finetune.file, message, "finetune again on all of them")
    yield from _log(f"{entry.pretrain}/pretrain.log", pretrain, entry.scale.pretrain, entry)
    log_files = [f"{entry.finetune}/{name}" for name in ("finetune.log", "finetuning.log")]
    for name in log_files:
        yield from _log(name, finetune, entry.scale.finetune[entry.division], entry)
    if entry.sha256(log_files[0]) != entry.sha256(log_files[1]):
        message = f"is not {log_files[0]}: the kit knows one log by two names"
        yield Finding("T1", log_files[1], message, "snakemake --force " + finetune.file)


def _strategy(entry: Entry, record: Record) -> Iterator[Finding]:
    """A stage learns as the kit has it or, in the division open, by a strategy that this toolkit knows."""
    strategy = record.settings.get("strategy")
    remedy = "train without it"
    if strategy is not None and entry.division != "open":
        message = f"its strategy is {strategy}, division {entry.division} is the kit's training"
        yield Finding("T1", record.file, message, remedy)
    elif strategy is not None and record.stage not in STRATEGIES.get(str(strategy), ()):
        known = ", ".join(name for name, stages in STRATEGIES.items() if record.stage in stages)
        message = f"its strategy is {strategy}, {record.stage} knows {known}"
        yield Finding("T1", record.file, message, remedy)


def _settings(record: Record, stage: Stage, entry: Entry) -> Iterator[Finding]:
    """The record's numbers are the scale table's."""
    expected = {"scale": entry.scale.name} | {key: getattr(stage, key) for key in SETTINGS}
    for key, value in expected.items():
        if record.settings.get(key) != value:
            message = (
                f"settings.{key} is {record.settings.get(key)}, the scale {entry.scale.name} fixes {value}"
            )
            yield Finding("T1", record.file, message, "train with the scale's own number")
    micro, accumulation = record.settings["micro_batch"], record.settings["accumulation"]
    if micro * accumulation != stage.global_batch:
        message = (
            f"micro-batch {micro} x accumulation {accumulation} is not the global batch {stage.global_batch}"
        )
        yield Finding("T1", record.file, message, "train with the scale's own number")
    # As Transformers' Trainer counts: micro-batches left over after the last full accumulation are not
    # trained on.
    steps = stage.epochs * max(1, math.ceil(record.results["rows"] / micro) // accumulation)
    if record.results["steps"] != steps:
        calculation = (
            f"{record.results['rows']} rows in batches of {stage.global_batch} and {stage.epochs} epochs "
            f"make {steps}"
        )
        yield Finding(
            "T1",
            record.file,
            f"{counted(record.results['steps'], 'step')}, {calculation}",
            "train again to the end",
        )


def _commands(entry: Entry, pretrain: Record, finetune: Record) -> Iterator[Finding]:
    """The command of a record says what its settings and inputs say: train.sh repeats it."""
    images = entry.record("data").settings["images"]["path"]
    for record, folder in ((pretrain, entry.pretrain), (finetune, entry.finetune)):
        command = [str(part) for part in record.settings["command"]]
        given = dict(zip(command[5::2], command[6::2], strict=False))
        expected = {
            "--scale": record.settings["scale"],
            "--seed": record.settings["seed"],
            "--output": folder,
        }
        if record is pretrain and ("base" in record.settings or "--base" in given):
            expected |= {"--base": record.settings.get("base")}
        if "strategy" in record.settings or "--strategy" in given:
            expected |= {"--strategy": record.settings.get("strategy")}
        if "teacher" in record.inputs or "--teacher" in given:
            teacher = record.inputs.get("teacher")
            expected |= {"--teacher": teacher and str(PurePosixPath(teacher.path).parent)}
        expected |= {"--samples": record.inputs["samples"].path}
        if "--images" in given:
            beside = str(PurePosixPath(record.inputs["samples"].path).parent)
            expected |= {"--images": images if record is pretrain else beside}
        for model in BASE:
            item = first_file(record, model)
            expected[f"--{model}"] = item and str(PurePosixPath(item.path).parent)
        if record is finetune:
            lora = lora_of(record)
            expected |= {"--projector": record.inputs["projector"].path, "--division": entry.division}
            expected |= {f"--lora-{key}": lora[key] for key in ("rank", "alpha", "dropout") if lora}
            expected |= {"--base": lora["base"]} if lora else {}
        if command[:5] != ["python", "-m", "toolkit", "train", record.stage] or len(command) % 2 == 0:
            yield Finding("T1", record.file, f"its command is not one of train {record.stage}", "train again")
        for flag, value in expected.items():
            if given.get(flag) != str(value):
                message = f"its command has {flag} {given.get(flag)}, settings and inputs say {value}"
                yield Finding("T1", record.file, message, "train again")


def _adapter(entry: Entry, finetune: Record) -> Iterator[Finding]:
    """adapter_config.json has the record's rank, alpha and dropout."""
    file = f"{entry.finetune}/adapter_config.json"
    if entry.division != "open":
        return
    lora = lora_of(finetune)
    if not {"rank", "alpha", "dropout", "base"} <= lora.keys():
        yield Finding(
            "T1", finetune.file, "settings.lora lacks rank, alpha, dropout or base", "finetune again"
        )
    elif entry.exists(file):
        config = entry.json(file)
        for key, name in (("r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout")):
            if config.get(key) != lora[name]:
                message = f"{key} is {config.get(key)}, {finetune.file} says {lora[name]}"
                yield Finding("T1", file, message, "finetune again")


def lora_of(record: Record) -> dict[str, Any]:
    """What a finetuning's record says of its adapter."""
    lora = record.settings.get("lora")
    return lora if isinstance(lora, dict) else {}


def schedule(stage: Stage, steps: int) -> list[float]:
    """Learning rate logged after each step, 1 to `steps`: linear warm-up, then half a cosine to 0
    (get_cosine_schedule_with_warmup)."""
    warmup = math.ceil(steps * stage.warmup_ratio)
    rates = []
    for step in range(1, steps + 1):
        factor = (
            step / warmup
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        )
        rates.append(stage.learning_rate * factor)
    return rates


def _log(file: str, record: Record, stage: Stage, entry: Entry) -> Iterator[Finding]:
    """One line a step, finite losses, the stated learning rates, the closing line."""
    remedy = "delete the folder and train again"
    steps: list[tuple[int, dict]] = []
    closing = None
    if entry.length(file) > LOG:
        yield Finding("T1", file, f"has more than {LOG} bytes: no log of a training", remedy)
        return
    lines = entry.path(file).read_text(encoding="utf-8").splitlines()
    if (count := sum(line.startswith("{") for line in lines)) > STEPS:
        yield Finding("T1", file, f"has {counted(count, 'step')}, at most {STEPS} are read", remedy)
        return
    for number, line in enumerate(lines, start=1):
        if marks := [marker for marker in entry.rules.markers if marker in line.lower()]:
            yield Finding(
                "T1", file, f"the line carries the mark {marks[0]!r} of a simulation", remedy, line=number
            )
        if not line.startswith("{"):
            continue
        try:
            values = logged(line)
        except Malformed:
            problem = (
                "the loss is not finite" if re.search(r"\b(nan|inf)\b", line) else "the line cannot be read"
            )
            yield Finding("T1", file, problem, remedy, line=number)
            continue
        if "loss" in values:
            if not (math.isfinite(values["loss"]) and values["loss"] > 0):
                # of a cross-entropy, 0 says that no token was labelled
                message = f"the loss is not a finite number above 0: {values['loss']}"
                yield Finding("T1", file, message, remedy, line=number)
            if not math.isfinite(values.get("grad_norm", 0)):
                yield Finding("T1", file, "the gradients are not finite", remedy, line=number)
            steps.append((number, values))
        else:
            closing = values
    if len(steps) != record.results["steps"]:
        count_logged = counted(len(steps), "step is", "steps are")
        yield Finding("T1", file, f"{count_logged} logged, the record says {record.results['steps']}", remedy)
    expected = schedule(stage, record.results["steps"]) if record.results["steps"] <= STEPS else []
    for step, ((number, values), rate) in enumerate(zip(steps, expected, strict=False), start=1):
        if abs(values["learning_rate"] - rate) > 1e-6 * stage.learning_rate:
            message = (
                f"step {step} logs learning rate {values['learning_rate']:.3e}, the schedule has "
                f"{rate:.3e}: a line is missing or wrong"
            )
            yield Finding("T1", file, message, remedy, line=number)
            break
    epochs = [values["epoch"] for _, values in steps]
    for (number, _), before, after in zip(steps[1:], epochs, epochs[1:], strict=False):
        if after < before:
            message = f"the epoch falls from {before} to {after}: these are lines of more than one run"
            yield Finding("T1", file, message, remedy, line=number)
            break
    if epochs and epochs[-1] > stage.epochs + 0.01:  # rounded to two digits
        message = f"ends at epoch {epochs[-1]}, the scale {entry.scale.name} trains {stage.epochs}"
        yield Finding("T1", file, message, remedy, line=steps[-1][0])
    if unlikely := implausible([values for _, values in steps]):
        yield Finding("T1", file, unlikely, remedy, line=steps[0][0])
    if (
        closing is None
        or closing.get("train_steps") != record.results["steps"]
        or closing.get("train_samples") != record.results["rows"]
    ):
        message = (
            "the closing line with the record's train_steps and train_samples is missing: the run did not end"
        )
        yield Finding("T1", file, message, remedy)
    elif closing.get("train_loss") != record.results["mean_loss"]:
        message = (
            f"train_loss is {closing.get('train_loss')} in the closing line, the record's mean_loss is "
            f"{record.results['mean_loss']}"
        )
        yield Finding("T1", file, message, remedy)
    if steps:
        losses = [values["loss"] for _, values in steps]
        summary = {"first_loss": losses[0], "last_loss": losses[-1], "mean_loss": sum(losses) / len(losses)}
        for key, value in summary.items():
            if abs(record.results[key] - value) > ROUNDED:
                message = f"{key} is {value:.4f} here and {record.results[key]:.4f} in {record.file}"
                yield Finding("T1", file, message, remedy)


def implausible(lines: list[dict[str, float]]) -> str | None:
    """What no training on batches of other rows logs: values that repeat, or a curve without noise."""
    losses, norms = [line["loss"] for line in lines], [line.get("grad_norm") for line in lines]
    if len(lines) > 2 and len(set(losses)) == 1:
        return f"all {len(lines)} losses are the same"
    if len(lines) < JUDGED:
        return None
    if len(set(norms)) < len(norms) / 2:
        return f"{len(set(norms))} different gradient norms in {len(norms)} steps"
    bends = sorted(
        abs(before - 2 * loss + after) / loss
        for before, loss, after in zip(losses, losses[1:], losses[2:], strict=False)
    )
    if bends[len(bends) // 2] < SMOOTH:
        return f"the losses of {len(lines)} steps lie on a smooth curve: each batch has other rows"
    return None


def merge(entry: Entry) -> Iterator[Finding]:
    """M1: the merged model answers as the adapter model does, something changed, no adapter remains, the
    shards are those on disk."""
    record = entry.record("merge")
    remedy = f"delete {record.file} and merge again"
    proof = record.results
    difference, limit = proof["max_logit_difference"], min(proof["tolerance"], entry.rules.merge_tolerance)
    # A full finetuning has no adapter model to compare with.
    if entry.division == "open" and not (difference is not None and 0 <= difference <= limit):
        message = (
            f"merged and adapter model differ by {difference} in their logits, at most {limit:.3g} is allowed"
        )
        yield Finding("M1", record.file, message, remedy)
    if not 0 < proof["tensors_changed"] <= proof["tensors_total"]:
        message = (
            f"{proof['tensors_changed']} of {proof['tensors_total']} tensors changed: nothing was merged"
        )
        yield Finding("M1", record.file, message, remedy)
    if proof["lora_tensors_left"] != 0:
        message = f"{counted(proof['lora_tensors_left'], 'tensor')} of the adapter in the merged model"
        yield Finding("M1", record.file, message, remedy)
    folder = entry.finetune if proof["checkpoint"] == "." else f"{entry.finetune}/{proof['checkpoint']}"
    on_disk = set(entry.names(f"{folder}/model*.safetensors"))
    recorded = {item.path: item for item in record.outputs.values()}
    weight_files = {name for name in recorded if name.endswith(".safetensors")}
    outside = {name for name in weight_files if entry.outside(name)}
    if not on_disk and not outside:
        yield Finding("M1", folder, "there are no merged weights", remedy)
    for name in sorted(on_disk | weight_files - outside):
        if name not in recorded:
            yield Finding("M1", name, f"{record.file} does not know this shard", remedy)
        elif name not in on_disk:
            yield Finding("M1", name, f"{record.file} names this shard, it is not there", remedy)
        elif entry.sha256(name) != recorded[name].sha256:
            yield Finding("M1", name, f"the shard is not the file that {record.file} proved", remedy)
    copied = {item.sha256: item.path for item in record.inputs.values()}
    for name in sorted(weight_files):
        if (source := copied.get(recorded[name].sha256)) is not None:
            yield Finding("M1", name, f"is a copy of {source}: nothing was merged", remedy)
    if (
        on_disk == weight_files
        and (count := sum(len(tensor_names(entry, name)) for name in on_disk)) != proof["tensors_total"]
    ):
        yield Finding(
            "M1",
            record.file,
            f"states {counted(proof['tensors_total'], 'tensor')}, the shards hold {count}",
            remedy,
        )
    for name in sorted(on_disk):
        adapter_tensors = [tensor for tensor in tensor_names(entry, name) if "lora_" in tensor]
        if adapter_tensors:
            message = f"holds {len(adapter_tensors)} adapter tensors, the first is {adapter_tensors[0]}"
            yield Finding("M1", name, message, remedy)
