"""A recipe: a Data-Juicer configuration, checked in full before anything starts.

Only `project_name` and `process` are read from it; data, output and run settings come from the command line. A model is named by a token,
`hf_clip: "{clip}"`, which stands for the folder of `--model clip=DIR`: a recipe holds no machine's paths and nothing is downloaded.

Two things go beyond Data-Juicer. A limit of a filter may follow from the rows, `min_score: {quantile: 0.5}` (toolkit/data/thresholds.py
has the forms), and a mapper may be held to some rows, `where: {image_text_similarity: {max: 0.28}}`. The record states what came out.
"""

import difflib
import inspect
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from toolkit.data import thresholds
from toolkit.errors import UserError

TOKEN = re.compile(r"^\{(\w+)\}$")
FILE_ARGUMENT = re.compile(r"(path|dir|file)s?$|^hf_|model")
# Set for every operator by the toolkit: another value would skip failing rows, or change the result with the number of processes.
RESERVED = {"text_key", "image_key", "skip_op_error", "auto_op_parallelism", "num_proc", "work_dir", "turbo", "batch_mode", "save_dir"}
NOT_BY_ROW = {"document_line_deduplicator", "video_deduplicator"}
LIMIT = re.compile(r"(min|max)_")  # arguments of a filter that may follow from the rows
WHERE = "where"


@dataclass(frozen=True)
class Step:
    """One operator. `arguments`: what Data-Juicer gets, folders of models in place; `adaptive`: limits that follow from the rows, by
    argument; `where`: limits on statistics outside of which a mapper leaves a row alone, `{statistic: {"min": ..., "max": ...}}`.
    """

    number: int  # from 1
    operator: str
    arguments: dict[str, Any]
    adaptive: dict[str, dict[str, Any]] = field(default_factory=dict)
    where: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe that passed every check. `written`: its operators as in the file."""

    name: str
    written: list[dict[str, dict[str, Any]]]
    steps: list[Step]
    models: dict[str, Path]  # those that the recipe uses
    files: list[Path]  # that arguments name, relative to the working directory


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} is there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def load(path: Path, models: Mapping[str, Path]) -> Recipe:
    """Read and check a recipe; UserError lists every problem. call it inside `juicer.offline()`."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a recipe of solution/recipes") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not isinstance(document.get("process"), list):
        raise UserError(f"{path} has no list of operators under the key process")
    problems = [f"{key}: not a key of a recipe, only project_name and process are" for key in document.keys() - {"project_name", "process"}]
    problems.sort()
    written, steps, used = [], [], set()
    for number, step in enumerate(document["process"], start=1):
        step = {step: None} if isinstance(step, str) else step  # `- name` for `- name:`
        if not isinstance(step, dict) or len(step) != 1 or not isinstance(next(iter(step.values())), dict | None):
            problems.append(f"step {number}: not an operator with its arguments")
            continue
        ((operator, arguments),) = step.items()
        found, made = _check(number, operator, arguments or {}, models, used)
        problems.extend(f"step {number}, {operator}: {problem}" for problem in found)
        written.append({operator: arguments or {}})
        steps.append(made)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}, mend the recipe:{listed}")
    files = sorted({file for step in written for arguments in step.values() for file in named_files(arguments)})
    return Recipe(str(document.get("project_name", path.stem)), written, steps, {name: models[name] for name in sorted(used)}, files)


def named_files(arguments: Mapping[str, Any]) -> list[Path]:
    """Files that an operator's arguments name, those in folders included: a list of words decides a result as the arguments do."""
    found = []
    for name, value in arguments.items():
        if isinstance(value, str) and FILE_ARGUMENT.search(str(name)) and not TOKEN.match(value):
            found += [path for path in (Path(value), *Path(value).rglob("*")) if path.is_file()]
    return sorted(found)


def _check(number: int, operator: Any, arguments: dict, models: Mapping[str, Path], used: set[str]) -> tuple[list[str], Step]:
    """(problems, the step) of one operator; adds the models it names to `used`."""
    from data_juicer.ops import OPERATORS, Deduplicator, Filter, Mapper, Selector

    kind, step = OPERATORS.modules.get(operator), Step(number, str(operator), {})
    if kind is None:
        return [f"Data-Juicer has no such operator{_meant(str(operator), OPERATORS.modules)}"], step
    if "default" not in kind._supported_exec_modes:
        return ["it runs on Ray only"], step
    if not issubclass(kind, Deduplicator | Filter | Mapper | Selector) or operator in NOT_BY_ROW:
        return ["it makes one row out of several, and each row must keep the id and image of its seed row"], step
    parameters = signature(kind)
    problems, filled = [], step.arguments
    for name, value in arguments.items():
        if name == WHERE and issubclass(kind, Mapper):
            problems.extend(_where(value))
            step.where.update(value if not problems else {})
        elif issubclass(kind, Filter) and isinstance(value, dict) and _is_limit(name, parameters):
            problem = thresholds.problem(value)
            problems.extend([f"{name} is {value}: {problem}"] if problem else [])
            step.adaptive[name] = value
        elif name not in parameters:
            problems.append(f"it has no argument {name}{_meant(str(name), parameters)}")
        elif name in RESERVED:
            problems.append(f"{name} is set by the toolkit, take it out")
        else:
            problem, filled[name] = _value(name, value, parameters[name], models, used)
            problems.extend([problem] if problem else [])
    for name, parameter in parameters.items():  # a default of the model hub would be downloaded
        if name.startswith("hf_") and name not in arguments and isinstance(parameter.default, str):
            problems.append(f'{name} is not given and would be downloaded, name a local model: {name}: "{{model}}"')
    if not problems:
        try:
            kind(**filled)
        except Exception as error:  # operators check their arguments with whatever exception comes to hand
            problems.append(f"it refuses its arguments: {' '.join(str(error).split())}")
    return problems, step


def _is_limit(name: Any, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether an argument of a filter is a number that may follow from the rows; `min_closed_interval` is none."""
    return bool(LIMIT.match(str(name))) and name in parameters and not isinstance(parameters[name].default, bool)


def _where(value: Any) -> list[str]:
    """Problems of a mapper's `where`."""
    form = "where is not {statistic: {min: ..., max: ...}}, with one or both of min and max"
    if not isinstance(value, dict) or not value:
        return [form]
    problems = []
    for statistic, limits in value.items():
        if not isinstance(limits, dict) or not limits or limits.keys() - {"min", "max"}:
            problems.append(form)
            continue
        for name, limit in limits.items():
            problem = thresholds.problem(limit) if isinstance(limit, dict) else None
            if isinstance(limit, bool) or not isinstance(limit, dict | int | float) or (isinstance(limit, float) and not isfinite(limit)):
                problem = "a number is expected"
            problems.extend([f"where.{statistic}.{name} is {limit!r}: {problem}"] if problem else [])
    return problems


def _value(name: str, value: Any, parameter: inspect.Parameter, models: Mapping[str, Path], used: set[str]) -> tuple[str | None, Any]:
    """(problem or None, the value with a token replaced by its folder) of one argument."""
    token = TOKEN.match(value) if isinstance(value, str) else None
    if token:
        model = token.group(1)
        if model not in models:
            return f"{name} names the model {value}, give --model {model}=DIR", value
        used.add(model)
        return None, str(models[model].resolve())
    if isinstance(value, dict) and len(value) == 1 and next(iter(value.values())) is None:
        return f'{name}: write the token of a model in quotes, "{{{next(iter(value))}}}"', value
    if isinstance(value, str) and FILE_ARGUMENT.search(name):
        if name.startswith("hf_"):
            return f'{name} is {value}, which would be downloaded, name a local model: {name}: "{{model}}"', value
        if PurePosixPath(value).is_absolute() or value.startswith("~") or ".." in PurePosixPath(value).parts:
            return f"{name} is {value}, only relative paths inside the project are allowed", value
    if value is None and parameter.default is None:
        return None, value
    try:
        text = json.dumps(value, allow_nan=False)  # YAML also has dates, sets and numbers that the record cannot hold
        if getattr(parameter.annotation, "__module__", "") == "jsonargparse.typing":  # numbers that check their range as they are made
            parameter.annotation(value)
        elif parameter.annotation is not inspect.Parameter.empty:
            adapter = TypeAdapter(parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True))
            # Strict, but as JSON: a YAML list serves for a tuple or a set, the text "0.3" does not serve for a number.
            adapter.validate_json(text, strict=True)
    except ValidationError as error:
        return f"{name} is {value!r}: {error.errors()[0]['msg'].lower()}", value
    except (ValueError, TypeError) as error:
        return f"{name} is {value!r}: {error}", value
    return None, value


def signature(operator: type) -> dict[str, inspect.Parameter]:
    """Argument names of an operator, its base classes' included, with annotation and default."""
    parameters: dict[str, inspect.Parameter] = {}
    for kind in inspect.getmro(operator):
        if "__init__" in vars(kind) and kind is not object:
            hints = typing.get_type_hints(kind.__init__, include_extras=True)
            for name, parameter in inspect.signature(kind.__init__).parameters.items():
                if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    parameters.setdefault(name, parameter.replace(annotation=hints.get(name, parameter.empty)))
        # Data-Juicer's base classes take these through **kwargs and list them here: name -> (type or None, default).
        for name, (annotation, default) in vars(kind).get("_BASE_PARAMS", {}).items():
            annotation = inspect.Parameter.empty if annotation is None else annotation
            parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            parameters.setdefault(name, parameter)
    return parameters


def _meant(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
