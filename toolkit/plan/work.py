"""What every rule of the workflow has to do for a configuration: counted in the files that are there,
otherwise from sizes.yaml.

Of the rules that make submit.zip: not of the pages and figures beside it.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from toolkit import assets, scales
from toolkit.benchmarks import BENCHMARKS
from toolkit.config import SEARCHED, Config, assets_read, recipe_file
from toolkit.contest.records import read_record
from toolkit.counted import counted
from toolkit.data import recipe
from toolkit.data.recipe import DRAWS, allowed
from toolkit.data.recipe.plan import THRESHOLD
from toolkit.doctor.work import finetuning
from toolkit.errors import UserError
from toolkit.evaluate import control
from toolkit.files import read_json, read_yaml, sha256
from toolkit.mgm.room import PICTURE, Need
from toolkit.scales import Scale, Sight
from toolkit.seeds import run_name
from toolkit.train import memory
from toolkit.train.memory import SIZES, Kind
from toolkit.world.build import drawn

STATISTICS = 1600  # bytes of a seed row in output/scores (docs/recipes.md)
ROW = 325  # bytes of a row in LLaVA's format: 3,245,153 for the 10,000 of the contest's small seed
TEXT = 400  # tokens of a long question with its answer
FETCHED = "fetched"  # bytes from the network, of which no card knows a rate
CAPTIONER, READER = "batched_captioning_mapper", "ocr_mapper"
# An operator without a figure of its own that sees each image once, in batches, counts as a pass of CLIP.
BATCHED = ("batched_", "image_embedding_filter", "image_watermark_filter", "image_nsfw_filter")
# selectors that load a vector of each row, by default this one
SELECTORS = {
    "cluster_uniform_selector": "image_embedding",
    "embedding_duplicate_selector": "sentence_embedding",
}
NUMBERS = {"image_embedding": 768, "sentence_embedding": 384}  # in a vector of CLIP-L/14, of all-MiniLM-L6-v2

Step = tuple[str, dict[str, Any]]  # operator, arguments


class Size(BaseModel):
    """An asset in sizes.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int | None = None
    questions: dict[str, int] = {}
    bytes: int | None


@dataclass(frozen=True)
class Job:
    """One run of a rule.

    name: of its file in output/benchmarks, without the ending. text: the work in words; amounts: by the units
    of cards.yaml. kind: how it trains, None for other rules. model: bytes on a GPU of the largest model it
    runs. numbers: of the vectors that it holds at once. prompts: that it answers at once, if they fit; need:
    what they take. written: bytes on the disk; temporary: those that are deleted again. unknown: operators
    without a rate.
    """

    rule: str
    name: str
    text: str = ""
    amounts: Mapping[str, float] = field(default_factory=dict)
    kind: Kind | None = None
    model: int = 0
    numbers: int = 0
    prompts: int = 0
    need: Need | None = None
    written: int = 0
    temporary: int = 0
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """A configuration's jobs in running order, and sentences on what was assumed."""

    jobs: list[Job]
    assumed: list[str]


def steps(stage: scales.Stage, rows: int) -> int:
    """Optimizer steps over `rows` rows: Plan.of of toolkit/train/trainer.py, which a test compares, without
    torch."""
    micro = min(stage.micro_batch, stage.global_batch)
    return stage.epochs * max(1, math.ceil(rows / micro) // (stage.global_batch // micro))


def rate_of(kind: Kind, base: str) -> str:
    """The unit, in cards.yaml, of a training on a frozen base; nf4 counts as LoRA."""
    return ("lora" if kind == "nf4" else kind) + "_fp8" * (base == "fp8")


def slower(scale: Scale, sight: Sight) -> float:
    """How many times as long as the model that the rates are of a scale's model is taken to need, by numbers
    and by tokens."""
    known = SIZES[scale.size if scale.embedded else "2B"]
    usual = sight.image_tokens if scale.embedded else PICTURE
    tokens = (sight.image_tokens + TEXT) / (usual + TEXT)
    return tokens * SIZES[scale.size].parameters / known.parameters


def of(config: Config) -> Work:
    """All that a configuration asks for. UserError for an asset of unknown size that is not there."""
    scale, assumed = scales.load(config.scale), []
    kind = finetuning(config.finetune.division, config.finetune.base)
    steps_of = {name: _steps(recipe_file(config, each.recipe)) for name, each in config.experiments.items()}
    jobs = [
        _download(name)
        for name in sorted(assets_read(config))
        if not isinstance(assets.entry(name), assets.Own)
    ]
    read, trained_on, open_counts = rows(config.assets.seed), {}, []
    computed: Counter[tuple] = Counter()
    for name, steps in steps_of.items():
        jobs += _data(config, name, steps, read, computed)
        kept = rows_kept(config, name)
        if kept is None and any(operator != DRAWS for operator, _ in steps):
            open_counts.append(name)
        trained_on[name] = min(_after(steps, read)[1] if kept is None else kept, scale.cap)
    if open_counts:
        names = ", ".join(open_counts)
        assumed.append(f"{names}: how many rows a recipe keeps is not known before it ran, all are counted")
    taught = rows(config.assets.instruction)
    if (longer := slower(scale, scale)) > 1:
        times = f"{longer:.1f}"
        if (first := slower(scale, scale.sight(scale.pretrain))) != longer:
            times += f", and in the first stage {first:.1f}"
        assumed.append(
            f"the rates of training and answers are MGM-2B's: {scale.name} is taken to need {times} times as "
            "long, by its parameters and the tokens of an image"
        )
    for name, count in trained_on.items():
        for seed in config.seeds:
            jobs += _train(config, scale, kind, run_name(name, seed, config.seeds), count, taught)
    named = ("compare", "report", "train_script", "sources", "crate", "validate", "submit")
    return Work([*jobs, *(Job(name, name) for name in named)], assumed)


# --- assets


@cache
def sizes() -> dict[str, Size]:
    """What sizes.yaml says."""
    document = read_yaml(Path(__file__).parent / "sizes.yaml")
    return {name: Size.model_validate(values) for name, values in document.items()}


def manifest(asset: str) -> Path:
    """The file that is written when an asset is whole."""
    return Path("input", asset, "manifest.json")


def size(asset: str) -> int | None:
    """Bytes of an asset on the disk; None where they are not known."""
    if manifest(asset).is_file():
        return sum(file["bytes"] for file in read_json(manifest(asset))["files"].values())
    return sizes()[asset].bytes if asset in sizes() else None


def rows(asset: str) -> int:
    """Rows of a seed or of instruction data. UserError where they are not known."""
    if manifest(asset).is_file():
        path = manifest(asset).parent / assets.entry(asset).files["samples"]
        if path.suffix == ".jsonl":
            with path.open("rb") as lines:
                return sum(bool(line.strip()) for line in lines)
        return len(read_json(path))
    entry = assets.entry(asset)
    if isinstance(entry, assets.World):
        return drawn(entry.part, entry.rows)["rows"]
    known = sizes()[asset].rows if asset in sizes() else None
    if known is None:
        get = "run `assets adopt` on its folder" if isinstance(entry, assets.Own) else "fetch it"
        raise UserError(f"how many rows {asset} has is not known: {get}, then plan")
    return known


def questions(asset: str, benchmark: str) -> int:
    """Questions of a benchmark. UserError where they are not known."""
    entry, kind = assets.entry(asset), BENCHMARKS[benchmark]
    files = {name: manifest(asset).parent / entry.files.get(name, "?") for name in kind.inputs}
    # an asset that was made before it had this benchmark lacks them
    if manifest(asset).is_file() and all(path.exists() for path in files.values()):
        return len(kind.questions(files, kind.instruction))
    if isinstance(entry, assets.World):
        return drawn(entry.part, entry.rows)[benchmark]
    known = sizes()[asset].questions.get(benchmark) if asset in sizes() else None
    if known is None:
        raise UserError(f"how many questions of {benchmark} are in {asset} is not known: fetch it, then plan")
    return known


def _download(asset: str) -> Job:
    entry, name, written = assets.entry(asset), f"download/{asset}", size(asset) or 0
    if isinstance(entry, assets.World):
        return Job(
            "download", name, "drawn", {"pictures": drawn(entry.part, entry.rows)["rows"]}, written=written
        )
    if isinstance(entry, assets.Zoo | assets.Package):
        return Job("download", name, "copied", written=written)
    if isinstance(entry, assets.Random):
        return Job("download", name, "random weights", {"random": written}, written=written)
    return Job("download", name, "fetched", {FETCHED: written}, written=written)


# --- data


def _steps(path: Path) -> list[Step]:
    """A recipe's steps, none of one that a search has yet to write. What is wrong with them is said when the
    recipe runs."""
    document = recipe.read(path) if path.exists() or path.parent != SEARCHED else None
    process = document.get("process") if isinstance(document, dict) else None
    parts = [allowed.parts(step) for step in (process if isinstance(process, list) else [])]
    return [(operator, arguments) for operator, arguments in parts if operator]


def _roles(steps: list[Step]) -> set[str]:
    """Roles of the models that the steps name."""
    roles = (allowed.role(name, value) for _, arguments in steps for name, value in arguments.items())
    return {role for role in roles if role}


def _number(arguments: dict[str, Any], name: str, default: Any) -> Any:
    """An argument that is a number, or its default."""
    value = arguments.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _after(steps: list[Step], read: int) -> tuple[list[int], int]:
    """(rows that each step computes for, rows at the end), of `read` rows. Statistics are computed for every
    row that is drawn at the recipe's head, whatever is selected later; filters and deduplicators are taken to
    keep all, for nobody knows."""
    computed, scored, kept = [], read, read
    drawing = True
    for operator, arguments in steps:
        computed.append(scored)
        times = 1
        drawing = drawing and operator == DRAWS
        if operator == CAPTIONER:
            times = _number(arguments, "caption_num", 1) + (arguments.get("keep_original_sample") is True)
        elif operator == "repeat_mapper":
            times = _number(arguments, "times", 2)
        elif operator == DRAWS:
            share = _number(arguments, "select_ratio", 1.0)
            kept = min(int(share * kept), _number(arguments, "select_num", kept), kept)
            scored = kept if drawing else scored
        scored, kept = scored * times, kept * times
    return computed, kept


def rows_kept(config: Config, experiment: str) -> int | None:
    """Rows that an experiment's recipe wrote; None before it ran as it is now, on the configuration's
    seed."""
    path = Path("output/processed_data", experiment, "run.json")
    recipe = recipe_file(config, config.experiments[experiment].recipe)
    if not path.is_file() or not recipe.is_file():
        return None
    record = read_record(path, "synthesize")
    made_by, samples = record.inputs.get("recipe"), record.inputs.get("samples")
    same_recipe = made_by is not None and made_by.sha256 == sha256(recipe)
    same_seed = samples is not None and Path(samples.path).parent == manifest(config.assets.seed).parent
    return record.results["rows_written"] if same_recipe and same_seed else None


def _data(config: Config, name: str, steps: list[Step], read: int, computed: Counter[tuple]) -> list[Job]:
    """The jobs that make an experiment's data. computed: for how many rows experiments before
    have put each statistic into the store; those of this one are added."""
    kept = rows_kept(config, name)
    kept = _after(steps, read)[1] if kept is None else kept
    selected = {"selected": read if steps else 0}
    return [
        _score(config, name, steps, read, computed),
        Job(
            "synthesize",
            f"synthesize/{name}",
            counted(read, "row", form=","),
            selected,
            numbers=_numbers(steps, read),
            written=ROW * read,
        ),
        Job("check", f"check/{name}", counted(kept, "row", form=","), {"checked": kept}),
        Job("contamination", f"contamination/{name}", counted(kept, "row", form=","), {"compared": kept}),
        Job("convert", f"convert/{name}", counted(kept, "row", form=","), written=ROW * kept),
    ]


def _numbers(steps: list[Step], read: int) -> int:
    """Numbers of the vectors that the selector with the most of them loads."""
    counts = [0]
    for (operator, arguments), count in zip(steps, _after(steps, read)[0], strict=True):
        if operator in SELECTORS:
            counts.append(count * NUMBERS.get(arguments.get("embedding", SELECTORS[operator]), 0))
    return max(counts)


def _score(config: Config, name: str, steps: list[Step], read: int, computed: Counter[tuple]) -> Job:
    """The job that fills the store of statistics with what it lacks."""
    amounts: Counter[str] = Counter(scored=read if steps else 0)
    largest, unknown = 0, []
    mappers: tuple = ()
    for (operator, arguments), count in zip(steps, _after(steps, read)[0], strict=True):
        named = _roles([(operator, arguments)])
        # a statistic depends on what the mappers before it did to the row
        step = (operator, json.dumps(_computing(operator, arguments), sort_keys=True, default=str))
        key = (*mappers, step)
        if operator.endswith("_mapper"):
            mappers = key
        # of two draws the smaller is a part of the larger
        count, computed[key] = count - computed[key], max(count, computed[key])
        if count <= 0 or not (named or operator.startswith("endpoint_")):
            continue
        if operator == READER:  # on the processor
            amounts["read"] += count
            continue
        largest = max([largest, *(_loaded(getattr(config.assets, role)) for role in named)])
        if operator == CAPTIONER:
            amounts["captions"] += count * _number(arguments, "caption_num", 1)
        elif operator.startswith(BATCHED) and not any(_packaged(config, role) for role in named):
            amounts["images"] += count
        else:
            unknown.append(operator)
    words = {
        "scored": "rows",
        "captions": "captions",
        "images": "images seen by models",
        "read": "images read for text",
    }
    text = ", ".join(f"{amounts[unit]:,} {word}" for unit, word in words.items() if amounts[unit])
    return Job(
        "score",
        f"score/{name}",
        text or "no operators",
        dict(amounts),
        model=largest,
        written=STATISTICS * read,
        unknown=tuple(unknown),
    )


def _packaged(config: Config, role: str) -> bool:
    """Whether a role's model came inside a Python package, for the processor."""
    return isinstance(assets.entry(getattr(config.assets, role)), assets.Package)


def _loaded(asset: str) -> int:
    """Bytes of a recipe's model on a GPU: bf16, where files from the network are float32."""
    return (size(asset) or 0) // (2 if isinstance(assets.entry(asset), assets.Url | assets.Hub) else 1)


def _computing(operator: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that decide what an operator computes: no limits."""
    filtering = operator.endswith("_filter")
    return {
        name: value
        for name, value in arguments.items()
        if name != "where" and not (filtering and THRESHOLD.match(name))
    }


# --- training and answers


def _train(config: Config, scale: Scale, kind: Kind, run: str, count: int, taught: int) -> list[Job]:
    """The jobs of one training run: `count` rows in the first stage, `taught` in the second."""
    model, tuned = SIZES[scale.size], f"MGM-{scale.size}-Finetune-{run}"
    rank = config.finetune.lora_rank
    whole = 2 * model.saved  # bf16
    stages: list[tuple[str, Kind, str, scales.Stage, int, int]] = [
        ("pretrain", "pretrain", config.pretrain.base, scale.pretrain, count, 2 * model.connector),
        (
            "finetune",
            kind,
            config.finetune.base,
            scale.finetune[config.finetune.division],
            taught,
            whole if kind == "full" else 4 * memory.trained(model, kind, rank),
        ),
    ]
    jobs = []
    for rule, how, base, stage, done, kept in stages:
        number = steps(stage, done)
        # float32 weights and moments, twice: the next checkpoint is written before the last is deleted
        checkpoints = 2 * 12 * memory.trained(model, how, rank) if number > stage.save_steps else 0
        jobs.append(
            Job(
                rule,
                f"{rule}/MGM-{scale.size}-{rule.capitalize()}-{run}",
                f"{counted(number, 'step', form=',')} of {stage.global_batch}",
                {rate_of(how, base): number * stage.global_batch * slower(scale, scale.sight(stage))},
                kind=how,
                written=kept,
                temporary=checkpoints,
            )
        )
    weights = 2 * model.parameters
    jobs.append(
        Job("merge", f"merge/{tuned}", "1 model", model=weights, written=0 if kind == "full" else whole)
    )
    for name in config.benchmarks:
        asked = questions(config.assets.evaluation, name)
        asked += min(control.QUESTIONS, asked)
        jobs.append(
            Job(
                f"eval_{name}",
                f"eval_{name}/{tuned}",
                counted(asked, "answer", form=","),
                {"answers": asked * slower(scale, scale)},
                model=weights,
                prompts=config.benchmarks[name].batch_size,
                need=Need(scale.image_tokens + TEXT, 2 * model.cached, scale.image_tokens),
            )
        )
    return jobs
