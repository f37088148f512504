"""Several recipes over one seed set, for the studies: each in a folder of its own, all with one store of
statistics."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.recipe import allowed
from toolkit.data.synthesize import Run, synthesize
from toolkit.errors import UserError
from toolkit.files import read_yaml

RECIPES = Path("solution/recipes")
REMOVES_ALL = "removes all rows"  # in place of the figures of a recipe that does


class NotRun(UserError):
    """A recipe needs what is not there; the other recipes can still run."""


@dataclass(frozen=True)
class RecipeRun:
    """What a recipe made. `folder` holds processed_data.jsonl, removed.jsonl and run.json; `seconds`: once
    all statistics are known; `first_seconds`: with those computed that no recipe before it had asked for;
    `model_calls`: rows that went through its models.
    """

    name: str
    folder: Path
    results: dict[str, Any]
    model_calls: int
    first_seconds: float
    seconds: float
    bytes: int


def recipes(names: Sequence[str]) -> list[Path]:
    """The files of the recipes called `names`, of all recipes if there are none. UserError for a recipe that
    is not there."""
    files = [RECIPES / f"{name}.yaml" for name in names] or sorted(RECIPES.glob("*.yaml"))
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        raise UserError(
            f"{missing[0] if missing else RECIPES} is not here: run this in the project's folder and name "
            f"recipes of {RECIPES}"
        )
    return files


def lacking(recipe: Path, models: Mapping[str, Path]) -> list[str]:
    """What a recipe needs and is not there: models that it names, and a key where it asks an endpoint."""
    steps = _steps(recipe)
    absent = sorted({model for step in steps for model in _models(step)} - models.keys())
    asks = any("responses" in step for step in steps) and not os.environ.get("OPENAI_API_KEY")
    return [*(f"model {name}" for name in absent), *["key OPENAI_API_KEY"] * asks]


def make(
    recipe: Path, samples: Path, images: Path, models: Mapping[str, Path], processes: int, output: Path
) -> RecipeRun:
    """Run a recipe twice: what is missing is computed, then the time is taken with everything known.
    NothingLeft as `synthesize`; NotRun where something is lacking."""
    if absent := lacking(recipe, models):
        raise NotRun(f"not run: no {', no '.join(absent)}")
    folder = output / recipe.stem
    run = Run(recipe, samples, images, models, processes, "local", output / "scores")
    files = [folder / name for name in ("processed_data.jsonl", "removed.jsonl", "run.json")]
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        results = synthesize(run, *files)
        seconds.append(time.monotonic() - start)
    # The funnel has a line for reading before the recipe's steps and one for the result after them.
    steps = zip(_steps(recipe), results["funnel"][1:-1], strict=False)
    calls = sum(line.get("mapped", line["in"]) for arguments, line in steps if _models(arguments))
    return RecipeRun(recipe.stem, folder, results, calls, seconds[0], seconds[1], files[0].stat().st_size)


def _steps(recipe: Path) -> list[dict[str, Any]]:
    """The arguments of each step; none for what is not a recipe, which `synthesize` refuses."""
    document = read_yaml(recipe)
    process = document.get("process") if isinstance(document, dict) else None
    return [allowed.parts(step)[1] for step in process] if isinstance(process, list) else []


def _models(arguments: Mapping[str, Any]) -> list[str]:
    """The models that an operator's arguments name."""
    return [model for name, value in arguments.items() if (model := allowed.role(name, value))]
