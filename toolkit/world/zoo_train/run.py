"""Train the whole zoo: render once, then the language model, the towers and the captioner side by side on one GPU.

    python -m toolkit world zoo-train --output DIR

About nine minutes on one NVIDIA H200 with 16 CPU cores. DIR gets one folder a model and zoo.json, written last. GPU arithmetic is
not repeatable to the bit: another run gives other weights of the same quality, so the shipped zoo is pinned by its hashes.
"""

import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json
from toolkit.record import versions

SCENES, TEXTS, SEED = 160_000, 1_000_000, 2024
LICENCE = "Apache-2.0"


def _language(output: Path, folder: Path, settings: dict[str, Any]) -> None:
    from toolkit.world.zoo_train import language

    numbers = language.run(output / "gemma", texts=settings["texts"], processes=settings["processes"], **settings["language"])
    write_json(folder / "gemma.json", numbers)


def _towers(output: Path, folder: Path, settings: dict[str, Any]) -> None:
    from toolkit.world.zoo_train import towers

    write_json(folder / "towers.json", towers.run(output, folder=folder / "scenes", **settings["towers"]))


def _captioner(output: Path, folder: Path, settings: dict[str, Any]) -> None:
    from toolkit.world.zoo_train import captioner

    write_json(folder / "captioner.json", captioner.run(output / "captioner", folder=folder / "scenes", **settings["captioner"]))


def settings_of(device: str, steps: tuple[int, int, int], batch: int = 512) -> dict[str, Any]:
    """Settings of the three trainings; steps of the language model, the towers, the captioner."""
    names = ("language", "towers", "captioner")
    parts = {name: {"steps": count, "batch": batch, "device": device} for name, count in zip(names, steps, strict=True)}
    return {"scenes": SCENES, "texts": TEXTS, "processes": os.cpu_count()} | parts


def describe(output: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file of the zoo in `output`."""
    files = sorted(path for path in output.glob("*/*") if path.is_file())
    return {path.relative_to(output).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}


def train(output: Path, settings: dict[str, Any], models: tuple[str, ...] = ("gemma", "towers", "captioner")) -> None:
    """Render, train `models` in parallel processes and write zoo.json; a failed training is a UserError that names it."""
    from toolkit.world.zoo_train import data

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zoo-") as name:
        folder = Path(name)
        if set(models) & {"towers", "captioner"}:
            data.rendered(folder / "scenes", settings["scenes"], SEED, settings["processes"])
        spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        work = {"gemma": _language, "towers": _towers, "captioner": _captioner}
        running = {model: spawn.Process(target=work[model], args=(output, folder, settings)) for model in models}
        for process in running.values():
            process.start()
        for process in running.values():
            process.join()
        failed = [model for model, process in running.items() if process.exitcode]
        if failed:
            raise UserError(f"training of {', '.join(failed)} failed: see the messages above")
        before = read_json(output / "zoo.json")["training"] if (output / "zoo.json").exists() else {}
        numbers = before | {model: read_json(folder / f"{model}.json") for model in models}
    write_json(
        output / "zoo.json",
        {
            "licence": LICENCE,
            "command": "python -m toolkit world zoo-train --output DIR",
            "settings": {key: settings[key] for key in ("scenes", "texts")} | {"seed": SEED},
            "training": numbers,
            "versions": versions("torch", "transformers", "numpy", "pillow"),
            "files": describe(output),
        },
    )
