"""The record (`run.json`) that every stage leaves behind: what went in, what came out, how.

A record holds nothing that differs between two runs on one machine: no times, host names or absolute paths.
"""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toolkit.files import sha256, write_json

VERSION = 1


def relative(path: Path | str) -> str:
    """`path` relative to the working directory where it lies inside it, else its last two parts: never an absolute path."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as named
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return "/".join(path.parts[-2:])


def describe(paths: Mapping[str, Path | str]) -> dict[str, dict[str, Any]]:
    """`{name: {path, sha256, bytes}}` of existing files."""
    return {name: {"path": relative(path), "sha256": sha256(path), "bytes": Path(path).stat().st_size} for name, path in paths.items()}


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of `packages`; one that is absent is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_record(
    path: Path | str,
    stage: str,
    *,
    inputs: Mapping[str, Path | str],
    outputs: Mapping[str, Path | str],
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    packages: tuple[str, ...] = (),
    device: str = "cpu",
) -> None:
    """Write the record of `stage` to `path`, atomically and after all its outputs exist.

    inputs and outputs: name -> file. settings: what was effective, seeds included. results: the numbers the stage found.
    """
    write_json(
        path,
        {
            "record": VERSION,
            "stage": stage,
            "inputs": describe(inputs),
            "outputs": describe(outputs),
            "settings": dict(settings),
            "results": dict(results),
            "versions": versions(*packages),
            "device": device,
        },
    )
