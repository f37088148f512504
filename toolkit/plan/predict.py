"""Seconds and memory of every job on a card, and what does not fit."""

from dataclasses import dataclass, replace
from pathlib import Path

from toolkit import scales
from toolkit.config import Config
from toolkit.doctor.work import LIGHTER, SETTINGS, finetuning
from toolkit.plan.cards import Card, Rate, table
from toolkit.plan.work import FETCHED, Job, Work
from toolkit.train import memory
from toolkit.train.memory import GIB, PROCESS, RESERVE, SIZES, Kind

TRAINING = ("pretrain", "finetune")
HOURS = 7200  # seconds from which on hours are printed
LINE = 12.5e6  # bytes a second of 100 Mbit/s
TIGHT = 0.75  # of a GPU's memory: from here on a full finetuning is worth a second thought


@dataclass(frozen=True)
class Prediction:
    """A job's seconds with their largest relative error, bytes that it takes of each GPU and of the host, at
    least; seconds None: not known."""

    job: Job
    seconds: float | None
    error: float
    device: int
    host: int


@dataclass(frozen=True)
class Outlook:
    """All predictions, and sentences on what was assumed, is not known, or does not fit."""

    card: Card
    gpus: int
    predictions: list[Prediction]
    notes: list[str]
    problems: list[str]

    @property
    def seconds(self) -> float:
        """Of the whole, by the clock."""
        return sum(each.seconds or 0 for each in self.predictions) / self.card.together

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and most seconds of the whole; the errors of its jobs may all have one direction."""
        error = sum((each.seconds or 0) * each.error for each in self.predictions) / self.card.together
        return self.seconds - error, self.seconds + error

    @property
    def disk(self) -> int:
        """Bytes on the disk at the most, of what is known."""
        return disk(self.predictions)


def disk(predictions: list[Prediction]) -> int:
    """Bytes that jobs leave, and the most that a single job takes for a while."""
    return sum(each.job.written for each in predictions) + max(each.job.temporary for each in predictions)


def minutes(seconds: float) -> str:
    """Minutes with as many digits as they deserve."""
    return f"{seconds / 60:.0f}" if seconds >= 600 else f"{seconds / 60:.1f}" if seconds >= 3 else "<0.1"


def duration(seconds: float) -> str:
    """Hours from HOURS on, minutes below."""
    return f"{seconds / 3600:.1f} h" if seconds >= HOURS else f"{minutes(seconds)} min"


def start_of(job: Job) -> str:
    """The name of a job's start in cards.yaml."""
    if job.rule == "score" and job.model:
        return "score_models"
    return "evaluate" if job.rule.startswith("eval_") else job.rule


def predict(config: Config, work: Work, card: Card, gpus: int) -> Outlook:
    """The outlook of a configuration on `gpus` cards."""
    predictions = [_prediction(config, job, card, gpus) for job in work.jobs]
    problems, tight = _problems(config, predictions, card, gpus)
    notes = [*work.assumed, *_notes(config, work, card, gpus), *tight]
    return Outlook(card, gpus, predictions, notes, problems)


def measured(card: Card, here: dict[str, float], gpus: int, error: float) -> Card:
    """`card` with training rates measured here on `gpus` GPUs; the other rates of a GPU by what pretraining
    here is to pretraining there, whose errors they keep."""
    # of one GPU, as the card has them
    rates = {stage: rate / (1 + card.scaling * (gpus - 1)) for stage, rate in here.items()}
    first = next(unit for unit in rates if unit.startswith("pretrain"))
    ratio = rates[first] / card.rates[first].value
    scaled = {
        key: rate if key in table().processor.rates else Rate(rate.value * ratio, rate.error)
        for key, rate in card.rates.items()
    }
    return replace(card, rates=scaled | {key: Rate(value, error) for key, value in rates.items()})


def _prediction(config: Config, job: Job, card: Card, gpus: int) -> Prediction:
    # each GPU after the first adds its share to a training
    speed = 1 + card.scaling * (gpus - 1) if job.rule in TRAINING else 1
    parts = [(card.starts.get(start_of(job), 0.0), card.start_error)]
    for unit, amount in job.amounts.items():
        if unit not in card.rates:
            return Prediction(job, None, 0.0, 0, 0)
        parts.append((amount / card.rates[unit].value / speed, card.rates[unit].error))
    seconds = sum(took for took, _ in parts)
    error = sum(took * part for took, part in parts) / seconds if seconds else 0.0
    device, host = _memory(config, job, card, gpus)
    return Prediction(job, seconds, error, device, host)


def setting(config: Config, card: Card, gpus: int) -> str:
    """Where a full finetuning on the card keeps its optimizer, as training chooses it."""
    model = SIZES[scales.load(config.scale).size]
    count = memory.trained(model, "full", 0)
    budget = int((card.memory or 0) * (1 - RESERVE))
    return memory.fastest(model.parameters, count, gpus, budget)


def _needs(config: Config, kind: Kind, card: Card, gpus: int, *, checkpoint: bool = False) -> tuple[int, int]:
    """Bytes of each GPU and of the host that a training takes at least; checkpoint: it writes some."""
    scale, rank = scales.load(config.scale), config.finetune.lora_rank
    model, how = SIZES[scale.size], setting(config, card, gpus) if kind == "full" else "zero2"
    tokens = scale.model_max_length
    return (
        memory.least(model, kind, tokens=tokens, rank=rank, setting=how, processes=gpus),
        memory.host(model, kind, rank=rank, setting=how, processes=gpus, checkpoint=checkpoint),
    )


def _memory(config: Config, job: Job, card: Card, gpus: int) -> tuple[int, int]:
    """Bytes of each GPU and of the host that a job takes at least; measured where there is no GPU."""
    if card.memory is None:
        return 0, card.resident.get(start_of(job), 0)
    if job.kind:
        return _needs(config, job.kind, card, gpus, checkpoint=job.temporary > 0)
    rows = [amount * card.growth[unit] for unit, amount in job.amounts.items() if unit in card.growth]
    process = job.model + PROCESS if job.model else card.growth["process"] if rows else 0
    beside = job.need.needed(1) if job.need else 0
    vectors = job.numbers * card.growth["vectors"]
    return job.model + beside, int(process + sum(rows) + vectors)


def fitting(job: Job, card: Card) -> int:
    """How many of its prompts a job answers at once on the card."""
    assert job.need and card.memory
    return job.need.fitting(job.prompts, int(card.memory * (1 - RESERVE)) - job.model)


def _notes(config: Config, work: Work, card: Card, gpus: int) -> list[str]:
    """Sentences on what the sum leaves out and what its rates are not quite."""
    notes = []
    fetched = {job.name: job.amounts[FETCHED] for job in work.jobs if FETCHED in job.amounts}
    if fetched:
        total = sum(fetched.values())
        unsized = [Path(name).name for name, size in fetched.items() if not size]
        notes.append(
            f"downloads are not in the sum: {total / 1e9:.1f} GB take {duration(total / LINE)} at 100 Mbit/s"
            + (f"; the sizes of {', '.join(unsized)} are not known and not in these GB" if unsized else "")
        )
    if any("random" in job.amounts for job in work.jobs):
        notes.append("not in the sum, since it was never measured: making models with random weights")
    if unknown := sorted({name for job in work.jobs for name in job.unknown}):
        notes.append(f"not in the sum, since their speed was never measured: {', '.join(unknown)}")
    if reading := sum(job.amounts.get("read", 0) for job in work.jobs):
        took = duration(reading / card.rates["read"].value)
        notes.append(f"score: {took} of it reads text in images, on two cores; more cores share it")
    answering = {job.rule: job for job in work.jobs if job.need and card.memory}
    for rule, job in answering.items():
        if (count := fitting(job, card)) < job.prompts:
            notes.append(f"{rule}: {count} of {job.prompts} questions at once fit, so it takes longer")
    kind = finetuning(config.finetune.division, config.finetune.base)
    if kind == "full" and card.memory and setting(config, card, gpus) != "offload":
        notes.append(
            "finetune: the rate was measured with the optimizer on the host; all on the GPU it is faster"
        )
    return notes


def _problems(
    config: Config, predictions: list[Prediction], card: Card, gpus: int
) -> tuple[list[str], list[str]]:
    """Sentences on what does not fit, and on what hardly does, each with the smaller choice."""
    problems: list[str] = []
    tight: list[str] = []
    if card.memory is None:
        return problems, tight
    room = card.memory * (1 - RESERVE)
    # of a rule's runs the one that takes most
    largest = {each.job.rule: each for each in sorted(predictions, key=lambda each: each.device)}
    for rule, prediction in largest.items():
        kind, needed = prediction.job.kind, f"{prediction.device / GIB:.1f} GiB of a GPU"
        choice = _choice(config, kind, card, gpus)
        if prediction.device > room:
            problems.append(
                f"{rule} does not fit: it takes at least {needed}, and of {card.title} {room / GIB:.1f} can "
                f"be used; {choice or 'take a larger card'}"
            )
        elif kind == "full" and prediction.device > TIGHT * card.memory:
            tight.append(
                f"{rule} just fits, with nothing else on the GPU, and keeps its optimizer in "
                f"{prediction.host / GIB:.0f} GiB of host memory; with less, {choice}"
            )
    return problems, tight


def _choice(config: Config, kind: Kind | None, card: Card, gpus: int) -> str | None:
    """The first lighter way to finetune that fits, with what it takes."""
    for lighter in LIGHTER.get(kind, ()) if kind else ():
        device, host = _needs(config, lighter, card, gpus)
        if card.memory and device <= card.memory * (1 - RESERVE):
            words = SETTINGS[lighter]
            return f"{words} takes {device / GIB:.1f} GiB of the GPU and {host / GIB:.0f} GiB of the host"
    return None
