"""A recipe: a Data-Juicer configuration, checked in full before anything starts.

Only `project_name` and `process` are read from it; data, output and run settings come from the command line.
A model is named by a token, `hf_clip: "{clip}"`, which stands for the folder of `--model clip=DIR`: a recipe
holds no machine's paths and nothing is downloaded.

Two things go beyond Data-Juicer. A limit of a filter may follow from the rows, `min_score: {quantile: 0.5}`
(toolkit/data/engine/thresholds.py has the forms), and a mapper may be held to some rows, `where:
{image_text_similarity: {max:
0.28}}`. The record states what came out.
"""

import importlib.util
import inspect
import itertools
import json
import os
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from toolkit.counted import counted
from toolkit.data.engine import thresholds
from toolkit.data.recipe import allowed, limits, statistic_names
from toolkit.data.recipe.statistic_names import STATISTICS
from toolkit.errors import UserError
from toolkit.files import read_json, read_yaml

FILES = 1000  # that a folder of an argument may hold
NOTES = "__dj__meta__."  # where a row has what mappers noted of it
WHERE = "where"
# rank what is not a number below all numbers
BY_NUMBER = {"range_specified_field_selector", "topk_specified_field_selector"}
BOUNDS = {  # without one of each, a selector of Data-Juicer keeps every row
    "frequency_specified_field_selector": [("top_ratio", "topk")],
    "random_selector": [("select_ratio", "select_num")],
    "range_specified_field_selector": [
        ("lower_percentile", "lower_rank"),
        ("upper_percentile", "upper_rank"),
    ],
    "topk_specified_field_selector": [("top_ratio", "topk")],
}
# At the head of a recipe it decides what is computed at all; elsewhere it takes away rows that are scored.
DRAWS = "random_selector"


@dataclass(frozen=True)
class Step:
    """One operator. `arguments`: what Data-Juicer gets, folders of models in place; `adaptive`: limits that
    follow from the rows, by argument; `where`: limits on statistics outside of which a mapper leaves a row
    alone, `{statistic: {"min": ..., "max": ...}}`.
    """

    number: int  # from 1
    operator: str
    arguments: dict[str, Any]
    adaptive: dict[str, dict[str, Any]] = field(default_factory=dict)
    where: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe that passed every check. `raw_steps`: its operators as in the file."""

    name: str
    raw_steps: list[dict[str, dict[str, Any]]]
    steps: list[Step]
    models: dict[str, Path]  # those that the recipe uses
    files: list[Path]  # that arguments name, relative to the working directory


def read(path: Path) -> Any:
    """What a recipe's file says, unchecked. UserError for a file that is not there or is no YAML."""
    if not path.exists():
        raise UserError(f"{path} does not exist: name a recipe of solution/recipes")
    return read_yaml(path)


def load(path: Path, models: Mapping[str, Path]) -> Recipe:
    """Read and check a recipe; UserError lists every problem. call it inside `juicer.offline()`."""
    document = read(path)
    if not isinstance(document, dict) or not isinstance(document.get("process"), list):
        raise UserError(f"{path} has no list of operators under the key process")
    process = document["process"]
    unknown = sorted(allowed.short(key) for key in document.keys() - {"project_name", "process"})
    problems = [f"{key}: not a key of a recipe, only project_name and process are" for key in unknown]
    if len(process) > allowed.STEPS:
        problems += allowed.problems(process)
        process = []
    raw_steps, steps, files = [], [], []
    used: set[str] = set()
    for number, step in enumerate(process, start=1):
        operator, arguments = allowed.parts(step)
        refused = allowed.step_problems(number, step)
        if operator is not None and not refused:
            step_problems, checked_step, step_files = _check(number, operator, arguments, models, used)
            refused = [f"step {number}, {operator}: {problem}" for problem in step_problems]
            raw_steps.append({operator: arguments})
            steps.append(checked_step)
            files += step_files
        problems += refused
    problems = problems or list(statistic_names.problems(steps))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path} has {counted(len(problems), 'problem')}, repair the recipe:{listed}")
    name = str(document.get("project_name", path.stem))
    return Recipe(name, raw_steps, steps, {role: models[role] for role in sorted(used)}, sorted(set(files)))


def named_files(arguments: Mapping[str, Any]) -> list[Path]:
    """Files that an operator's arguments name, those in folders included: a list of words decides a result as
    the arguments do.

    UserError for a link that leads out of the project, and for a folder that was hardly meant because it
    holds so many files.
    """
    paths, project = [], Path.cwd().resolve()
    for name, value in arguments.items():
        if name in allowed.WORD_LISTS and isinstance(value, str) and allowed.is_relative(value):
            # linked folders are not entered
            inside = (Path(folder, file) for folder, _, files in os.walk(value) for file in files)
            for path in itertools.chain([Path(value)], inside):
                if not path.resolve().is_relative_to(project):
                    raise UserError(
                        f"{name} is {value}, but {path} leads out of the project: put a copy there"
                    )
                if path.is_file():
                    paths.append(path)
                if len(paths) > FILES:
                    raise UserError(
                        f"{name} is {value}, which holds more than {FILES} files: name a folder with what is "
                        "needed alone"
                    )
    return sorted(paths)


def _check(
    number: int, operator: str, arguments: dict, models: Mapping[str, Path], used: set[str]
) -> tuple[list[str], Step, list[Path]]:
    """(problems, the step, files it names) of one operator; adds the models it names to `used`."""
    from data_juicer.ops import Filter, Mapper

    from toolkit.data.operators import registered

    kind, step = registered(operator), Step(number, operator, {})
    if kind is None:
        return ["Data-Juicer has no such operator"], step, []
    parameters = signature(kind)
    problems, filled, files = [], step.arguments, []
    for name, value in arguments.items():
        if name == WHERE and issubclass(kind, Mapper):
            problems.extend(limits.where(value))
            step.where.update(value if not problems else {})
        elif issubclass(kind, Filter) and isinstance(value, dict) and limits.is_limit(name, parameters):
            problem = thresholds.problem(value)
            problems.extend([f"{name} is {allowed.short(value)}: {problem}"] if problem else [])
            step.adaptive[name] = value
        elif name not in parameters:
            problems.append(
                f"it has no argument {allowed.short(name)}{allowed.did_you_mean(name, parameters)}"
            )
        else:
            problem, filled[name] = _value(name, value, parameters[name], models, used)
            problems.extend([problem] if problem else [])
    problems.extend(limits.sizes(arguments) if operator == "image_size_filter" else [])
    problems.extend(limits.reversed_limits(arguments, parameters))
    for name, parameter in parameters.items():  # defaults that would be downloaded
        if name not in arguments and isinstance(parameter.default, str):
            if allowed.MODEL.match(name):
                problems.append(
                    f'{name} is not given and would be downloaded, name a local model: {name}: "{{model}}"'
                )
            elif name in allowed.PATHS:
                problems.append(f"{name} is not given and would be downloaded, name a local folder")
    try:
        files = named_files(arguments)
        problems = problems or _absent(kind) or _no_words(arguments, files) or _no_notes(operator, arguments)
        problems = problems or _unbounded(operator, arguments) or _unpaired(arguments)
        problems = problems or _absent(kind(**filled))
    except UserError as error:
        problems.append(str(error))
    except Exception as error:  # operators check their arguments with whatever exception comes to hand
        problems.append(f"it refuses its arguments: {' '.join(str(error).split())}")
    return problems, step, files


def _absent(operator: Any) -> list[str]:
    """Problem of packages that an operator imports when it first needs them and that are not installed.

    operator: a class, whose modules name packages, or an instance, whose models do.
    """
    from data_juicer.utils.lazy_loader import LazyLoader

    if isinstance(operator, type):
        modules = [
            vars(sys.modules[kind.__module__])
            for kind in operator.__mro__
            if kind.__module__.startswith("data_juicer.ops.")
        ]
        globals_used = [value for module in modules for value in module.values()]
    else:
        models = [
            value.func
            for value in vars(operator).values()
            if isinstance(value, partial) and hasattr(value.func, "__code__")
        ]
        globals_used = [model.__globals__.get(name) for model in models for name in model.__code__.co_names]
    packages = {
        package._package_name
        for package in globals_used
        if isinstance(package, LazyLoader) and not _is_installed(package._module_name)
    }
    # one mode of it alone compares captions
    if getattr(operator, "_name", None) == "image_captioning_mapper":
        packages -= {"simhash-pybind"}
    return [
        f"it needs the Python package {name}, which is not installed: install it, or take the step out"
        for name in sorted(packages)
    ]


def _no_words(arguments: Mapping[str, Any], files: list[Path]) -> list[str]:
    """Problem of a folder without a list of words, which would be downloaded."""
    for name in sorted(allowed.WORD_LISTS & arguments.keys()):
        words, folder = name.removesuffix("_dir"), Path(arguments[name])
        lists = [file.name for file in files if file.parent == folder and file.suffix == ".json"]
        if not any(words in listed for listed in lists):
            return [f"{name} is {folder}, which holds no {words}.json: put one there, {{language: [words]}}"]
        read = [read_json(folder / listed) for listed in lists if words in listed]
        known = sorted(set().union(*(languages for languages in read if isinstance(languages, dict))))
        if (language := arguments.get("lang", "en")) not in ("all", *known):
            known_ones = ", ".join(known) or "none"
            return [f"lang is {language}, of which {folder} has no words; known: {known_ones}"]
    return []


def _no_notes(operator: str, arguments: Mapping[str, Any]) -> list[str]:
    """Problem of a filter by a field that rows lack while statistics are computed, each apart from the
    others."""
    key = arguments.get("field_key", "")
    if not operator.startswith("specified_") or key.startswith(NOTES):
        return []
    return [
        f"field_key is {allowed.short(key)!r}: rows have only what mappers noted, {NOTES}NAME; the filter "
        "that computes a statistic has limits for it"
    ]


def _unbounded(operator: str, arguments: Mapping[str, Any]) -> list[str]:
    """Problems of a stock selector that lacks what it selects by: it would keep every row without a word."""
    problems = [
        f"it would keep every row: give {' or '.join(names)}"
        for names in BOUNDS.get(operator, ())
        if all(arguments.get(name) is None for name in names)
    ]
    key = arguments.get("field_key", "")
    if operator.endswith("_specified_field_selector") and not key:
        problems.append(f"field_key is not given: name a statistic, {STATISTICS}NAME")
    elif operator in BY_NUMBER and not str(key).startswith(STATISTICS):
        problems.append(f"field_key is {allowed.short(key)!r}: name a statistic, {STATISTICS}NAME")
    if operator == "tags_specified_field_selector" and arguments.get("target_tags") is None:
        problems.append("target_tags is not given: list the values that stay")
    return problems


def _unpaired(arguments: Mapping[str, Any]) -> list[str]:
    """Problem of patterns with fewer or more replacements."""
    lengths = [len(arguments[name]) for name in ("pattern", "repl") if isinstance(arguments.get(name), list)]
    if len(set(lengths)) < 2:
        return []
    entries = counted(lengths[0], "entry", "entries")
    return [f"pattern has {entries} and repl {lengths[1]}: give as many of each"]


def _is_installed(module: str) -> bool:
    """Whether a module's outermost package is there; it is not imported."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _value(
    name: str, value: Any, parameter: inspect.Parameter, models: Mapping[str, Path], used: set[str]
) -> tuple[str | None, Any]:
    """(problem or None, the value with a token replaced by its folder) of one argument."""
    model = allowed.role(name, value)
    if model:
        if model not in models:
            return f"{name} names the model {value}, give --model {model}=DIR", value
        used.add(model)
        return None, str(models[model].resolve())
    if value is None and parameter.default is None:
        return None, value
    if isinstance(value, float) and not isfinite(value):
        return f"{name} is {value}: a finite number is expected", value
    try:
        # YAML also has dates, sets and numbers that the record cannot hold
        text = json.dumps(value, allow_nan=False)
        # numbers that check their range as they are made
        if getattr(parameter.annotation, "__module__", "") == "jsonargparse.typing":
            parameter.annotation(value)
        elif parameter.annotation is not inspect.Parameter.empty:
            adapter = TypeAdapter(parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True))
            # Strict, but as JSON: a YAML list serves for a tuple or a set, the text "0.3" does not serve for
            # a number.
            adapter.validate_json(text, strict=True)
    except ValidationError as error:
        return f"{name} is {allowed.short(repr(value))}: {error.errors()[0]['msg'].lower()}", value
    except (ValueError, TypeError) as error:
        return f"{name} is {allowed.short(repr(value))}: {error}", value
    return None, value


def signature(operator: type) -> dict[str, inspect.Parameter]:
    """Argument names of an operator, its base classes' included, with annotation and default."""
    parameters: dict[str, inspect.Parameter] = {}
    for kind in inspect.getmro(operator):
        constructor = vars(kind).get("__init__")
        if constructor and kind is not object:
            hints = typing.get_type_hints(constructor, include_extras=True)
            for name, parameter in inspect.signature(constructor).parameters.items():
                if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    parameters.setdefault(
                        name, parameter.replace(annotation=hints.get(name, parameter.empty))
                    )
        # Data-Juicer's base classes take these through **kwargs and list them here: name -> (type or None,
        # default).
        for name, (annotation, default) in vars(kind).get("_BASE_PARAMS", {}).items():
            annotation = inspect.Parameter.empty if annotation is None else annotation
            parameter = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            parameters.setdefault(name, parameter)
    return parameters
