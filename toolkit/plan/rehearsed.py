"""What a rehearsal (docs/rehearsal.md) says about an entry on the same machine: its starts and rates in place
of the shipped table's.

    python -m toolkit rehearsal forecast
"""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

from toolkit import config, scales
from toolkit.doctor import facts
from toolkit.doctor.facts import GPU
from toolkit.errors import UserError
from toolkit.files import read_open_jsonl
from toolkit.plan import predict, work
from toolkit.plan.cards import Card, table
from toolkit.plan.predict import TRAINING, Outlook
from toolkit.plan.show import span
from toolkit.train.memory import GIB

REHEARSAL = Path("workflow/config/rehearsal.yaml")
ENTRIES = (Path("workflow/config/baseline_10k.yaml"), Path("workflow/config/track_200k.yaml"))
TRAINED = Path("output/training_dirs")


def step_seconds(run: str, trained: Path = TRAINED) -> float:
    """Seconds of an optimizer step of a training run, the median after its first. UserError where the run is
    not there."""
    lines = read_open_jsonl(trained / run / "monitor.jsonl")
    timed = [line["step_seconds"] for line in lines if "step_seconds" in line]
    if not timed:
        raise UserError(f"{trained / run}/monitor.jsonl has no step_seconds: run `make rehearsal` first")
    return timed[-1]


def card(base: Card, rehearsal: Outlook, seconds: Mapping[str, float], trained: Path = TRAINED) -> Card:
    """`base` with what the rehearsal measured: rates of both trainings, by which the other rates of a GPU are
    scaled, and the mean start of each rule, which is what its work at these rates leaves of its seconds.

    seconds: of each job that ran. UserError for a rehearsal that is not finished.
    """
    if lacking := sorted(each.job.name for each in rehearsal.predictions if each.job.name not in seconds):
        raise UserError(f"the rehearsal has not run {lacking[0]}: run `make rehearsal` first")
    settings = config.read(REHEARSAL)
    scale = scales.load(settings.scale)
    batches = {
        "pretrain": scale.pretrain.global_batch,
        "finetune": scale.finetune[settings.finetune.division].global_batch,
    }
    rates: dict[str, list[float]] = defaultdict(list)
    for each in rehearsal.predictions:
        if each.job.rule in TRAINING:
            (unit,) = each.job.amounts
            run = Path(each.job.name).name
            rates[unit].append(batches[each.job.rule] / step_seconds(run, trained))
    measured = predict.measured(
        base, {unit: mean(values) for unit, values in rates.items()}, rehearsal.gpus, table().errors.here
    )
    starts: dict[str, list[float]] = defaultdict(list)
    for each in rehearsal.predictions:
        if each.seconds is None:  # random weights: nothing that an entry does
            continue
        working = sum(amount / measured.rates[unit].value for unit, amount in each.job.amounts.items())
        start = max(0.0, seconds[each.job.name] - working)
        starts[predict.start_of(each.job)].append(start)
    return replace(measured, starts={**base.starts, **{rule: mean(each) for rule, each in starts.items()}})


def forecast(base: Card, gpu: GPU, seconds: Mapping[str, float]) -> list[str]:
    """A sentence on what this machine can do of the contest's entries, and one for each that it cannot, with
    the reason. UserError without a finished rehearsal."""
    base = replace(base, title=gpu.name, memory=gpu.free)
    settings = config.read(REHEARSAL)
    here = card(base, predict.predict(settings, work.of(settings), base, 1), seconds)
    memory, free = facts.host_memory()[0], shutil.disk_usage(".").free
    can, cannot = [], []
    for path in ENTRIES:
        entry = config.read(path)
        outlook = predict.predict(entry, work.of(entry), here, 1)
        host = max(each.host for each in outlook.predictions)
        problems = list(outlook.problems)
        if host > memory:
            problems.append(f"it needs {host / GIB:.0f} GiB of host memory, {memory / GIB:.0f} are there")
        if outlook.disk > free:
            problems.append(f"it needs {outlook.disk / GIB:.0f} GiB on the disk, {free / GIB:.0f} are free")
        if problems:
            cannot.append(f"it cannot do {path.stem}: {problems[0]}")
        else:
            can.append(f"{path.stem} in {span(outlook)}")
    first = [f"this machine can do it: {', '.join(can)}"] if can else []
    return [*first, *cannot]
