"""What of a recipe decides its statistics: the same recipe without thresholds, selection and order, but with
the random draw at its head, as one line of JSON.

Two recipes with one plan share all statistics, so Snakemake's rule `score` takes the plan and not the
recipe's file: it runs again when a model, an operator or an argument of its computation changes, and not for
a threshold. Read while the workflow is parsed, so without Data-Juicer; a name tells what an argument is for.
Leaving too much out only means that `synthesize` computes a statistic itself.
"""

import json
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

from toolkit.data.recipe import DRAWS, allowed, named_files
from toolkit.errors import UserError
from toolkit.files import read_yaml

THRESHOLD = re.compile(r"(min|max)_|any_or_all$|reversed_range$")


def plan(path: Path) -> str:
    """The plan of a recipe's file. A file that is not a recipe has an empty plan: `recipe.load` says what is
    wrong with it."""
    return json.dumps({"process": _steps(_process(path))}, sort_keys=True)


def files(path: Path) -> list[str]:
    """Files that a recipe's arguments name, such as lists of words: a changed one changes the data as the
    recipe itself would."""
    arguments = [allowed.parts(step)[1] for step in _process(path)]
    try:
        return sorted(
            {file.as_posix() for step_arguments in arguments for file in named_files(step_arguments)}
        )
    except UserError:  # said by `recipe.load`
        return []


def _process(path: Path) -> list:
    if not path.exists():
        raise UserError(f"{path} does not exist: name a recipe of solution/recipes")
    try:
        document = read_yaml(path)
    except UserError:
        document = None
    process = document.get("process") if isinstance(document, dict) else None
    return process if isinstance(process, list) else []


def _steps(process: list) -> list[dict[str, Any]]:
    """Between two mappers the steps' order does not matter, nor that a step is there twice."""
    drawing = list(takewhile(lambda step: allowed.parts(step)[0] == DRAWS, process))
    planned: list[dict[str, Any]] = [{DRAWS: allowed.parts(step)[1]} for step in drawing]
    segment: dict[str, dict[str, Any]] = {}
    for step in [*process, None]:
        name, arguments = allowed.parts(step)
        if isinstance(name, str) and name.endswith(("_filter", "_deduplicator")):
            threshold = THRESHOLD if name.endswith("_filter") else re.compile("$^")
            computed = {
                name: {key: value for key, value in arguments.items() if not threshold.match(str(key))}
            }
            segment[json.dumps(computed, sort_keys=True, default=str)] = computed
        elif not (isinstance(name, str) and name.endswith("_selector")):
            planned.extend(segment[key] for key in sorted(segment))
            segment = {}
            if isinstance(name, str):
                planned.append({name: {key: value for key, value in arguments.items() if key != "where"}})
    return planned
