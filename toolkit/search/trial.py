"""One trial: a recipe's data, both stages on them, and the answers to a set of questions; all in one process,
by the functions of the ordinary rules.

What it does is kept in a folder until the result is there, so a killed trial continues where it was.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import assets, scales
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.data.convert import convert
from toolkit.data.synthesize import NothingLeft, Run, score, synthesize
from toolkit.evaluate import run as evaluation
from toolkit.files import read_json, write_json, write_text
from toolkit.search.proposal import Proposal
from toolkit.search.space import Space, recipe_text
from toolkit.train.inputs import BaseModels
from toolkit.train.merge import merge
from toolkit.train.stages import Job, Lora, finetune, pretrain

INPUTS = Path("input")
COMMAND = ["python", "-m", "toolkit", "search", "trial"]


@dataclass(frozen=True)
class Setup:
    """What of a configuration decides a trial, under the names that it has there: the scale, the assets by
    role, and the sections of synthesis, both trainings and benchmarks."""

    scale: str
    assets: Mapping[str, str]
    synthesize: Mapping[str, Any]
    pretrain: Mapping[str, Any]
    finetune: Mapping[str, Any]
    benchmarks: Mapping[str, Mapping[str, Any]]


def run(proposal: Proposal, setup: Setup, questions: str, place: Path, work: Path) -> dict[str, Any]:
    """Train and answer; return `{accuracies: {benchmark: percent}, rows (trained on), kept, seconds}`.

    questions: the asset that holds them. place: the folder of the store of statistics, which trials share.
    work: a folder of the trial's own, removed at the end. A recipe that removes every row scores nothing.
    """
    start = time.monotonic()
    kept, rows = _data(proposal, setup, place, work)
    trained = time.monotonic()
    scores = dict.fromkeys(CONTEST, 0.0)
    if rows:
        finetuned = _train(proposal, setup, work)
        answering = time.monotonic()
        scores = {name: _ask(name, setup, questions, finetuned, work) for name in CONTEST}
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


def fill(space: Space, setup: Setup, place: Path, work: Path, processes: int) -> int:
    """Compute the statistics that the space's recipes share; return how many recipes it took."""
    covering = space.covering()
    for number, process in enumerate(covering):
        recipe = work / f"covering-{number}.yaml"
        write_text(recipe, recipe_text(recipe.stem, process))
        score(over_seed(setup, recipe, place, processes), work / f"covering-{number}.json")
    return len(covering)


def folder(setup: Setup, role: str) -> Path:
    """The folder of the asset that plays `role`."""
    return INPUTS / setup.assets[role]


def file(asset: str, name: str) -> Path:
    """A file of an asset, by its name in the registry."""
    return INPUTS / asset / assets.entry(asset).files[name]


def over_seed(setup: Setup, recipe: Path, place: Path, processes: int) -> Run:
    """A recipe over the configuration's seed set, with all models that are here."""
    models = {role: folder(setup, role) for role in setup.assets if folder(setup, role).is_dir()}
    samples = file(setup.assets["seed"], "samples")
    executor = setup.synthesize["executor"]
    return Run(recipe, samples, folder(setup, "seed"), models, processes, executor, place)


def _data(proposal: Proposal, setup: Setup, place: Path, work: Path) -> tuple[int, int]:
    """Rows that the recipe kept, and those that are trained on, in `work`/llava.json."""
    scale = scales.load(setup.scale)
    recipe, samples = work / "recipe.yaml", work / "processed_data.jsonl"
    write_text(recipe, recipe_text(proposal.key, proposal.process))
    try:
        counts = synthesize(
            over_seed(setup, recipe, place, 1), samples, work / "removed.jsonl", work / "run.json"
        )
    except NothingLeft:
        return 0, 0
    # As a part of what the full training would read: with a fixed number of rows a recipe that keeps few
    # would be ranked as if it kept many.
    full = min(scale.cap, counts["rows_written"])
    cap = max(1, full * min(scale.cap, proposal.rows or scale.cap) // scale.cap)
    original = file(setup.assets["seed"], "original")
    rows, _ = convert(samples, original, work / "llava.json", cap, scale.question_tokens)
    return counts["kept"], rows


def _train(proposal: Proposal, setup: Setup, work: Path) -> Path:
    """Both stages and the merge; returns the finetuning folder."""
    scale = scales.load(setup.scale)
    base = BaseModels(folder(setup, "llm"), folder(setup, "clip"), folder(setup, "convnext"))
    pretrained, finetuned = (work / f"MGM-{scale.size}-{stage}-trial" for stage in ("Pretrain", "Finetune"))
    images = folder(setup, "seed")
    if not (pretrained / "run.json").is_file():
        job = Job(work / "llava.json", images, base, scale, proposal.seed, pretrained, COMMAND)
        pretrain(job, setup.pretrain["base"])
    if not (finetuned / "run.json").is_file():
        samples = _instructions(proposal, setup, work)
        how = setup.finetune
        lora = Lora(how["lora_rank"], how["lora_alpha"], how["lora_dropout"], how["base"])
        images = folder(setup, "instruction")
        job = Job(samples, images, base, scale, proposal.seed, finetuned, COMMAND)
        finetune(job, pretrained / "mm_projector.bin", lora if how["division"] == "open" else None)
    if not (finetuned / "merge.json").is_file():
        merge(finetuned, base, finetuned / "merge.json", COMMAND)
    return finetuned


def _instructions(proposal: Proposal, setup: Setup, work: Path) -> Path:
    """The finetuning data, or their first rows."""
    samples = file(setup.assets["instruction"], "samples")
    if proposal.instructions is None:
        return samples
    rows = read_json(samples)
    if len(rows) <= proposal.instructions:
        return samples
    fewer = work / "instructions.json"
    write_json(fewer, rows[: proposal.instructions])
    return fewer


def _ask(name: str, setup: Setup, questions: str, finetuned: Path, work: Path) -> float:
    """Percent of a benchmark's questions that are answered right."""
    benchmark, asked = BENCHMARKS[name], setup.benchmarks[name]
    files = {part: file(questions, part) for part in benchmark.inputs}
    instruction = asked["prompt"] or benchmark.instruction
    question_run = evaluation.Run(benchmark, files, finetuned, work / name, asked["batch_size"], instruction)
    result = evaluation.evaluate(question_run)
    return float(result["accuracy"])
