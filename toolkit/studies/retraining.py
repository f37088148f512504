"""Influence (toolkit/train/influence.py) against training both stages again without a group of rows, on the
embedded world.

    python -m toolkit data influence-study --output output/influence-study

The rows are 3,000 of the world's seed set with their raw captions. A group shares its planted defect; clean
rows and rows with a swapped caption, which are most, are divided further by what the caption names: one
object, several or a pair, with or without the sign's word. Random groups would differ too little to be
ranked. The questions are drawn from scenes of the split `tuning`, which no evaluation asks about.

Every training of a seed has the same rows in the same steps, the same dropout and the same learning rates;
the rows of the group that is left out add nothing to the gradients of their steps. The effect of a group is
the finetuned model's loss of the right answers without it, less the loss with all rows: above zero where the
group helped. It is compared with the sum of the influences of the group's rows by Spearman's rank
correlation, its 95 % interval by Fisher's transformation with the variance of Bonett & Wright (2000),
(1 + rho^2 / 2) / (groups - 3). How well the effects of two seeds agree says how high it can be.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from scipy.stats import spearmanr
from torch import Tensor

from toolkit import code, scales
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.config import Finetune
from toolkit.data.convert import convert
from toolkit.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from toolkit.mgm.checkpoint import load_projector, save_projector
from toolkit.mgm.loss import token_losses
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.progress import Progress
from toolkit.scales import Stage
from toolkit.studies.defects import SAMPLES, SEED, ZOO
from toolkit.tables import markdown as table
from toolkit.train.dataset import Conversations, Sample
from toolkit.train.influence import benchmark_gradient, influences, trained
from toolkit.train.inputs import BaseModels
from toolkit.train.lora import attach
from toolkit.train.optimizer import AdamW
from toolkit.train.right_answers import RightAnswers, right_answers
from toolkit.train.stages import Job, prepare, train_only
from toolkit.train.step import Execution, at_labels, expanded
from toolkit.train.strategies.base import Item, Strategy
from toolkit.train.trainer import Plan, Trainer
from toolkit.world.build import build
from toolkit.world.words import BETWEEN, NUMBERS, SIGNS

QUESTIONS_SEED, QUESTIONS = 2048, 500
DIVIDED = ("clean", "swapped")  # defects with the most rows
ALL = ""  # the name of the run without a group left out
CHUNK = 64


class LeaveOut(Strategy):
    """The plain training without some rows, given by their places."""

    def __init__(self, seed: int, places: Collection[int]) -> None:
        super().__init__(seed)
        self.places = frozenset(places)

    def draw(self, group: list[Item], step: int, losses: Callable[[list[Item]], list[float]]) -> list[Item]:
        return [item for item in group if item.sample.index not in self.places]


class World:
    """The study's data in `folder`, drawn where it is not there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scale = folder, scales.load("tiny")
        self.base = BaseModels(ZOO / "gemma", ZOO / "clip", ZOO / "convnext")
        self.seed, self.instruction = folder / "seed", folder / "instruction"
        self.rows, self.questions = folder / "rows.json", folder / "questions"
        if not self.rows.is_file():  # written last
            build("seed", self.seed, SEED)
            build("instruction", self.instruction, SEED)
            build("development", self.questions, QUESTIONS_SEED, QUESTIONS)
            original = self.seed / "stage_1.json"
            convert(self.seed / SAMPLES, original, self.rows, self.scale.cap, self.scale.question_tokens)

    def groups(self) -> dict[str, list[int]]:
        """Places of the rows by the name of their group."""
        labels = {label["id"]: label["defect"] for label in read_jsonl(self.seed / "truth/labels.jsonl")}
        places: dict[str, list[int]] = {}
        for place, row in enumerate(read_json(self.rows)):
            name = group_of(labels[str(row["id"])], row["conversations"][-1]["value"])
            places.setdefault(name, []).append(place)
        return dict(sorted(places.items()))

    def job(self, stage: str, seed: int) -> Job:
        """The run of a stage."""
        first = stage == "pretrain"
        samples = self.rows if first else self.instruction / "mgm_instruction_stage_1.json"
        images = self.seed if first else self.instruction
        return Job(samples, images, self.base, self.scale, seed, self.folder.parent / stage, [])

    def asked(self, model: MGMForCausalLM) -> dict[str, RightAnswers]:
        """The questions of each of the contest's benchmarks."""
        tokenizer = load_tokenizer(self.base.llm, self.scale.model_max_length)
        return right_answers(self.questions, tokenizer, model.mgm, self.scale)


def group_of(defect: str, caption: str) -> str:
    """The group of a row."""
    if defect in ("blurred", "tiny"):
        return "blurred or tiny"
    if defect not in DIVIDED:
        return defect
    words = set(caption.replace(",", "").split())
    relations = {phrase.split()[0] for phrase in BETWEEN.values()}
    form = "pair" if words & relations else "several" if words & set(NUMBERS[1:]) else "single"
    return f"{defect}, {form}, {'with' if words & set(SIGNS) else 'without'} sign"


def fit(
    model: MGMForCausalLM,
    device: torch.device,
    job: Job,
    stage: Stage,
    names: tuple[str, ...],
    strategy: Strategy,
) -> None:
    """Train the parameters whose name has one of `names`, as the stage does."""
    parameters = train_only(model, lambda name: any(part in name for part in names))
    tokenizer = load_tokenizer(job.base.llm, job.scale.model_max_length)
    dataset = Conversations(job.samples, job.images, tokenizer, model.mgm, job.scale.template)
    plan = Plan.of(stage, len(dataset), job.seed)
    optimizer = AdamW(parameters, plan.weight_decay, plan.max_grad_norm, device)
    trainer = Trainer(
        model,
        optimizer,
        dataset,
        plan,
        job.output,
        "log",
        {},
        grouped=stage.group_by_modality_length,
        device=device,
        strategy=strategy,
    )
    trainer.run(lambda: Execution(plan.micro_batch * job.scale.model_max_length), 0)
    trainer.finish()


def retrained(world: World, seed: int, left_out: Collection[int], projector: Path) -> dict[str, Any]:
    """Train both stages, write the first one's result to `projector`; the finetuned model's loss of the right
    answers (`loss`, nats a token) and how many of them greedy decoding gives (`right`, %), by benchmark."""
    scale, settings = world.scale, Finetune()
    job, stage = world.job("pretrain", seed), scale.pretrain
    model, device, dtype = prepare(job, stage)
    fit(model, device, job, stage, TRAINED_NAMES, LeaveOut(seed, left_out))
    save_projector(model, projector)
    job, stage = world.job("finetune", seed), scale.finetune["open"]
    model, device, dtype = prepare(job, stage)
    load_projector(model, projector, dtype)
    attach(model, settings.lora_rank, settings.lora_alpha, settings.lora_dropout, seed)
    fit(model, device, job, stage, ("lora_", *TRAINED_NAMES), Strategy(seed))
    return {name: judged(model, list(asked), device) for name, asked in world.asked(model).items()}


def judged(model: MGMForCausalLM, samples: list[Sample], device: torch.device) -> dict[str, float]:
    """Mean loss of the right answers, and the share of them that the model would give, in percent."""

    def both(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        right = (hidden @ weight.T).argmax(-1) == targets
        return torch.stack([token_losses(hidden, weight, targets), right.float()], 1)

    loss = right = 0.0
    for start in range(0, len(samples), CHUNK):
        items = [Item(sample, expanded(model, sample), 0.0) for sample in samples[start : start + CHUNK]]
        for values in at_labels(model, items, device, both):
            loss += float(values[:, 0].mean())
            right += float(values[:, 1].min())
    return {"loss": loss / len(samples), "right": 100 * right / len(samples)}


def summed(
    world: World, seed: int, projector: Path, groups: Mapping[str, list[int]]
) -> dict[str, list[float]]:
    """By benchmark: the sum of the influences of each group's rows."""
    job = world.job("pretrain", seed)
    model, device, dtype = prepare(job, world.scale.pretrain)
    load_projector(model, projector, dtype)
    parameters = list(trained(model).values())
    asked = world.asked(model)
    gradients = [benchmark_gradient(model, parameters, part, device)[0] for part in asked.values()]
    tokenizer = load_tokenizer(world.base.llm, world.scale.model_max_length)
    dataset = Conversations(job.samples, job.images, tokenizer, model.mgm, world.scale.template)
    values = influences(model, parameters, dataset, torch.stack(gradients, dim=1), device)
    sums = torch.stack([values[places].sum(0) for places in groups.values()])
    return {name: column.tolist() for name, column in zip(asked, sums.T, strict=True)}


def study(output: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Train what is not there yet, compare; write study.json and study.md to `output`, return the former.

    Data and trainings lie in a folder of the code that made them, so that those of two versions never meet.
    """
    work = output / code.digest(__name__)[:16]
    world = World(work / "world")
    groups, path = world.groups(), work / "runs.jsonl"
    runs = list(read_jsonl(path)) if path.is_file() else []
    made_before = {(run["seed"], run["group"]) for run in runs}
    wanted = [(seed, name) for seed in seeds for name in (ALL, *groups)]
    progress = Progress("trainings", len(wanted), interval=0)
    for seed, name in wanted:
        if (seed, name) not in made_before:
            projector = work / (f"all-{seed}.bin" if name == ALL else "without.bin")
            result = retrained(world, seed, groups.get(name, ()), projector)
            runs.append({"seed": seed, "group": name, **result})
            write_jsonl(path, runs)
        progress.step(note=name)
    by_run = {(run["seed"], run["group"]): run for run in runs}
    predicted = {seed: summed(world, seed, work / f"all-{seed}.bin", groups) for seed in seeds}
    result = {
        "seeds": list(seeds),
        "groups": {name: len(places) for name, places in groups.items()},
        "benchmarks": {
            name: compared(by_run, name, list(groups), {seed: predicted[seed][name] for seed in seeds})
            for name in CONTEST
        },
    }
    write_json(output / "study.json", result)
    write_text(output / "study.md", markdown(result))
    return result


def compared(
    runs: Mapping[tuple[int, str], Mapping[str, Any]],
    benchmark: str,
    groups: Sequence[str],
    predicted: Mapping[int, list[float]],
) -> dict[str, Any]:
    """Effects and influences of the groups by seed, and their rank correlations."""

    def change(seed: int, group: str, measure: str) -> float:
        return runs[seed, group][benchmark][measure] - runs[seed, ALL][benchmark][measure]

    effects = {seed: [change(seed, group, "loss") for group in groups] for seed in predicted}
    lost = {seed: [-change(seed, group, "right") for group in groups] for seed in predicted}
    mean_effect, mean_influence = (numpy.mean(list(x.values()), 0).tolist() for x in (effects, predicted))
    pairs = itertools.combinations(predicted, 2)
    return {
        "effects": effects,
        "right_lost": lost,
        "influences": predicted,
        "of_seed": {seed: ranked(predicted[seed], effects[seed]) for seed in predicted},
        "of_means": ranked(mean_influence, mean_effect),
        "of_means_right": ranked(mean_influence, numpy.mean(list(lost.values()), 0).tolist()),
        "between_seeds": {f"{a} {b}": ranked(effects[a], effects[b]) for a, b in pairs},
    }


def ranked(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation with its 95 % interval."""
    rho = float(spearmanr(a, b).statistic)
    reach = 1.96 * ((1 + rho**2 / 2) / (len(a) - 3)) ** 0.5
    middle = numpy.arctanh(numpy.clip(rho, -0.999999, 0.999999))
    return {"rho": rho, "low": float(numpy.tanh(middle - reach)), "high": float(numpy.tanh(middle + reach))}


def markdown(result: dict[str, Any]) -> str:
    """Rank correlations, then a line a group."""

    def shown(value: Mapping[str, float]) -> str:
        return f"{value['rho']:+.2f} ({value['low']:+.2f} to {value['high']:+.2f})"

    lines = []
    for name, part in result["benchmarks"].items():
        lines += [[BENCHMARKS[name].title, f"seed {seed}", shown(x)] for seed, x in part["of_seed"].items()]
        lines += [[BENCHMARKS[name].title, "means over seeds", shown(part["of_means"])]]
        lines += [[BENCHMARKS[name].title, "means, right answers", shown(part["of_means_right"])]]
        between = part["between_seeds"].items()
        lines += [[BENCHMARKS[name].title, f"effects of seeds {pair}", shown(x)] for pair, x in between]
    correlations = table(["benchmark", "between", "Spearman, 95 %"], lines)
    header = ["group left out", "rows"]
    for name in result["benchmarks"]:
        header += [f"{BENCHMARKS[name].title}: loss", "right answers, points", "influence"]
    rows = []
    for place, (group, count) in enumerate(result["groups"].items()):
        cells: list[Any] = [group, count]
        for part in result["benchmarks"].values():
            columns = part["effects"], part["right_lost"], part["influences"]
            loss, lost, influence = (numpy.mean([x[place] for x in by.values()]) for by in columns)
            cells += [f"{loss:+.4f}", f"{-lost:+.2f}", f"{influence:+.3g}"]
        rows.append(cells)
    seeds = ", ".join(map(str, result["seeds"]))
    note = f"Means over the training seeds {seeds}; loss and right answers: their change"
    return f"{correlations}\n{note} where the group is left out.\n\n{table(header, rows)}"
