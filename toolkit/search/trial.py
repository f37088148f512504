"""One trial: a recipe's data, both stages on them, and the answers to a set of questions; all in one process,
by the functions of the ordinary rules.

What it does is kept in a folder until the result is there, so a killed trial continues where it was.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from toolkit import assets, scales
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.config import Assets, Config
from toolkit.data.convert import convert
from toolkit.data.synthesize import NothingLeft, Run, score, synthesize
from toolkit.evaluate.run import Run as Asked
from toolkit.evaluate.run import evaluate
from toolkit.files import read_json, write_json, write_text
from toolkit.search.propose import Proposal
from toolkit.search.space import Space, Steps
from toolkit.train.inputs import BaseModels
from toolkit.train.merge import merge
from toolkit.train.stages import Job, Lora, finetune, pretrain

INPUTS = Path("input")
COMMAND = ["python", "-m", "toolkit", "search", "trial"]


def recipe_text(name: str, process: Steps) -> str:
    """A recipe's file."""
    document = {"project_name": name, "process": process}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def run(proposal: Proposal, settings: Config, questions: str, place: Path, work: Path) -> dict[str, Any]:
    """Train and answer; return `{accuracies: {benchmark: percent}, rows (trained on), kept, seconds}`.

    questions: the asset that holds them. place: the folder of the store of statistics, which trials share.
    work: a folder of the trial's own, removed at the end. A recipe that removes every row scores nothing.
    """
    start = time.monotonic()
    kept, rows = _data(proposal, settings, place, work)
    trained = time.monotonic()
    scores = dict.fromkeys(CONTEST, 0.0)
    if rows:
        finetuned = _train(proposal, settings, work)
        answering = time.monotonic()
        scores = {name: _ask(name, settings, questions, finetuned, work) for name in CONTEST}
    else:
        answering = trained
    end = time.monotonic()
    shutil.rmtree(work)
    return {
        "key": proposal.key,
        "accuracies": scores,
        "kept": kept,
        "rows": rows,
        "seconds": round(end - start, 1),
        "seconds_of": {
            "data": round(trained - start, 1),
            "training": round(answering - trained, 1),
            "answers": round(end - answering, 1),
        },
    }


def fill(space: Space, settings: Config, place: Path, work: Path, processes: int) -> int:
    """Compute the statistics that the space's recipes share; return how many recipes it took."""
    covering = space.covering()
    for number, process in enumerate(covering):
        recipe = work / f"covering-{number}.yaml"
        write_text(recipe, recipe_text(recipe.stem, process))
        score(over_seed(settings, recipe, place, processes), work / f"covering-{number}.json")
    return len(covering)


def folder(settings: Config, role: str) -> Path:
    """The folder of the asset that plays `role`."""
    return INPUTS / getattr(settings.assets, role)


def file(asset: str, name: str) -> Path:
    """A file of an asset, by its name in the registry."""
    return INPUTS / asset / assets.entry(asset).files[name]


def over_seed(settings: Config, recipe: Path, place: Path, processes: int) -> Run:
    """A recipe over the configuration's seed set, with all models that are here."""
    models = {role: folder(settings, role) for role in Assets.model_fields if folder(settings, role).is_dir()}
    samples = file(settings.assets.seed, "samples")
    executor = settings.synthesize.executor
    return Run(recipe, samples, folder(settings, "seed"), models, processes, executor, place)


def _data(proposal: Proposal, settings: Config, place: Path, work: Path) -> tuple[int, int]:
    """Rows that the recipe kept, and those that are trained on, in `work`/llava.json."""
    scale = scales.load(settings.scale)
    recipe, samples = work / "recipe.yaml", work / "processed_data.jsonl"
    write_text(recipe, recipe_text(proposal.key, proposal.process))
    try:
        counts = synthesize(
            over_seed(settings, recipe, place, 1), samples, work / "removed.jsonl", work / "run.json"
        )
    except NothingLeft:
        return 0, 0
    cap = min(scale.cap, proposal.rows or scale.cap)
    original = file(settings.assets.seed, "original")
    rows, _ = convert(samples, original, work / "llava.json", cap, scale.question_tokens)
    return counts["kept"], rows


def _train(proposal: Proposal, settings: Config, work: Path) -> Path:
    """Both stages and the merge; returns the finetuning folder."""
    scale = scales.load(settings.scale)
    base = BaseModels(folder(settings, "llm"), folder(settings, "clip"), folder(settings, "convnext"))
    pretrained, finetuned = (work / f"MGM-{scale.size}-{stage}-trial" for stage in ("Pretrain", "Finetune"))
    images = folder(settings, "seed")
    if not (pretrained / "run.json").is_file():
        pretrain(Job(work / "llava.json", images, base, scale, proposal.seed, pretrained, COMMAND))
    if not (finetuned / "run.json").is_file():
        samples = _instructions(proposal, settings, work)
        how = settings.finetune
        lora = Lora(how.lora_rank, how.lora_alpha, how.lora_dropout, how.base)
        images = folder(settings, "instruction")
        job = Job(samples, images, base, scale, proposal.seed, finetuned, COMMAND)
        finetune(job, pretrained / "mm_projector.bin", lora if how.division == "open" else None)
    if not (finetuned / "merge.json").is_file():
        merge(finetuned, base, finetuned / "merge.json", COMMAND)
    return finetuned


def _instructions(proposal: Proposal, settings: Config, work: Path) -> Path:
    """The finetuning data, or their first rows."""
    samples = file(settings.assets.instruction, "samples")
    if proposal.instructions is None:
        return samples
    rows = read_json(samples)
    if len(rows) <= proposal.instructions:
        return samples
    fewer = work / "instructions.json"
    write_json(fewer, rows[: proposal.instructions])
    return fewer


def _ask(name: str, settings: Config, questions: str, finetuned: Path, work: Path) -> float:
    """Percent of a benchmark's questions that are answered right."""
    benchmark, asked = BENCHMARKS[name], settings.benchmarks[name]
    files = {part: file(questions, part) for part in benchmark.inputs}
    instruction = asked.prompt or benchmark.instruction
    result = evaluate(Asked(benchmark, files, finetuned, work / name, asked.batch_size, instruction))
    return float(result["accuracy"])
