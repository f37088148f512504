"""Limits of filters and mappers in a recipe: which arguments are some, what is wrong with them, and between
which nothing lies, before anything is computed."""

import inspect
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeGuard

from toolkit.data.engine import thresholds
from toolkit.data.recipe import allowed

LIMIT = re.compile(r"(min|max)_")  # arguments of a filter that may follow from the rows
LOWER, UPPER = re.compile(r"^(?:min|lower)_"), {"min_": "max_", "lower_": "upper_"}  # limits of a range
SIZE = re.compile(r"\s*(\d+)\s*(?:([kmgtpezy])i?b)?\s*", re.IGNORECASE)  # of a file, as Data-Juicer reads it


def sizes(arguments: Mapping[str, Any]) -> list[str]:
    """Problems of file sizes: Data-Juicer takes the digits of a text, so that 1.5kb would be 15."""
    return [
        f"{name} is {allowed.short(value)!r}: a whole number of bytes is expected, or of KB, MB, GB, …"
        for name, value in arguments.items()
        if LIMIT.match(name) and isinstance(value, str) and not SIZE.fullmatch(value)
    ]


def is_limit(name: Any, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether an argument of a filter is a number that may follow from the rows; `min_closed_interval` is
    none."""
    return (
        bool(LIMIT.match(str(name))) and name in parameters and not isinstance(parameters[name].default, bool)
    )


def reversed_limits(arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Problems of limits between which nothing lies, before anything is computed for them; a limit that is
    not given has its default."""
    problems = []
    for lower in parameters:
        upper = LOWER.sub(lambda match: UPPER[match[0]], lower)
        if upper == lower or upper not in parameters or not {lower, upper} & arguments.keys():
            continue
        least, most = (arguments.get(name, parameters[name].default) for name in (lower, upper))
        if _above(least, most):
            said = ["" if name in arguments else " by default" for name in (lower, upper)]
            problems.append(
                f"{lower} is {least}{said[0]} and {upper} {most}{said[1]}: no row lies between them, give a "
                f"{lower} that is not above {upper}"
            )
    return problems


def _above(least: Any, most: Any) -> bool:
    """Whether a lower limit is certainly above an upper one: numbers, sizes of files, or shares of the rows
    by one form."""
    if isinstance(least, dict) and isinstance(most, dict):
        names = [name for name in ("quantile", "mean_sd") if name in least and name in most]
        return bool(names) and least.get("of") == most.get("of") and _above(least[names[0]], most[names[0]])
    if isinstance(least, str) and isinstance(most, str):
        low, high = _bytes(least), _bytes(most)
        return low is not None and high is not None and low > high
    return _is_number(least) and _is_number(most) and least > most


def _bytes(size: str) -> int | None:
    """Of a text such as 10kb; None for another one."""
    match = SIZE.fullmatch(size)
    return match and int(match[1]) << 10 * (" kmgtpezy".index((match[2] or " ").lower()))


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def where(value: Any) -> list[str]:
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
            if (
                isinstance(limit, bool)
                or not isinstance(limit, dict | int | float)
                or (isinstance(limit, float) and not isfinite(limit))
            ):
                problem = "a number is expected"
            elif isinstance(limit, dict) and "agree" in limit:
                problem = "agree is for the limits of filters"
            problems.extend(
                [f"where.{allowed.short(statistic)}.{name} is {allowed.short(repr(limit))}: {problem}"]
                if problem
                else []
            )
        least, most = limits.get("min"), limits.get("max")
        if _above(least, most):
            problems.append(
                f"where.{allowed.short(statistic)} has min {least} above max {most}: no row lies between them"
            )
    return problems
