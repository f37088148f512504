"""Train the zoo: render scenes, then train each model and write down how.

    python -m toolkit world zoo-train --output DIR [--models NAME ...]

Gemma, towers and captioner need a GPU (nine minutes on one NVIDIA H200 with 16 CPU cores), the others minutes
on two CPU cores each. DIR gets one folder a model and zoo.json, written last; models that are there already
stay. GPU arithmetic is not repeatable to the bit: another run gives other weights of the same quality, so the
shipped zoo is pinned by its hashes.
"""

import importlib
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.contest.records import versions
from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json
from toolkit.processes import cores

SEED = 2024  # of the scenes
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Training:
    """module of toolkit/world/zoo_train, optimizer steps, rows a step, and scenes (of the language model:
    conversations)."""

    module: str
    steps: int
    batch: int
    examples: int


TRAININGS = {
    "gemma": Training("language", 12_000, 512, 1_000_000),
    "llama": Training("llama", 240, 48, 12_000),  # begins as the shipped Gemma
    "towers": Training("towers", 5_000, 512, 160_000),  # clip and convnext
    "captioner": Training("captioner", 6_000, 512, 160_000),
    "matcher": Training("matcher", 1_200, 64, 16_000),  # looks through the shipped captioner's eyes
    "detector": Training("detector", 2_000, 64, 10_000),  # likewise CLIP's
    "perplexity": Training("perplexity", 2_000, 128, 20_000),
    "sentences": Training("sentences", 800, 128, 20_000),
    "watermark": Training("classifiers", 2_000, 64, 10_000),
    "pattern": Training("classifiers", 500, 64, 10_000),
    "sharpness": Training("classifiers", 800, 64, 10_000),
}
LANGUAGE = ("gemma", "llama", "sentences")  # trained on texts, without an image


def _train_one(name: str, output: Path, scenes: Path | None, device: str) -> dict[str, Any]:
    """Train a model and return what zoo.json says of it."""
    training = TRAININGS[name]
    module = importlib.import_module(f"toolkit.world.zoo_train.{training.module}")
    settings = {"steps": training.steps, "batch": training.batch, "device": device}
    if name in LANGUAGE:
        numbers = module.run(output / name, texts=training.examples, processes=cores(), **settings)
    elif name == "towers":
        numbers = module.run(output, folder=scenes, **settings)
    elif training.module == "classifiers":
        numbers = module.run(name, output / name, folder=scenes, **settings)
    else:
        numbers = module.run(output / name, folder=scenes, **settings)
    settings["texts" if name in LANGUAGE else "scenes"] = training.examples
    return settings | numbers | {"versions": versions("torch", "transformers", "numpy", "pillow")}


def describe(output: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file of the zoo in `output`."""
    files = sorted(path for path in output.glob("*/*") if path.is_file())
    return {
        path.relative_to(output).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in files
    }


def train(output: Path, models: tuple[str, ...], device: str) -> None:
    """Render, train `models` and write zoo.json; on a GPU side by side. A failed training is a UserError that
    names it."""
    from toolkit.world.zoo_train import data

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zoo-") as name:
        scenes = {
            count: Path(name) / str(count)
            for count in {TRAININGS[model].examples for model in models if model not in LANGUAGE}
        }
        for count, folder in scenes.items():
            data.rendered(folder, count, SEED, cores())
        spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        with ProcessPoolExecutor(len(models) if device == "cuda" else 1, spawn) as pool:
            running = {
                model: pool.submit(_train_one, model, output, scenes.get(TRAININGS[model].examples), device)
                for model in models
            }
        if failed := {model: future.exception() for model, future in running.items() if future.exception()}:
            raise UserError(
                "; ".join(f"training of {model} failed: {error}" for model, error in failed.items())
            )
    before = read_json(output / "zoo.json")["training"] if (output / "zoo.json").exists() else {}
    numbers = before | {model: future.result() for model, future in running.items()}
    command = "python -m toolkit world zoo-train --output DIR"
    write_json(
        output / "zoo.json",
        {
            "licence": LICENCE,
            "command": command,
            "seed": SEED,
            "training": numbers,
            "files": describe(output),
        },
    )
