"""The record (`run.json`) that every stage leaves behind: what went in, what came out, how.

A record holds nothing that differs between two runs on one machine: no times, host names or absolute paths. Two clones of one
commit state the same code, whatever their history and folder.
"""

import ctypes
import hashlib
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json

VERSION = 2
TOOLKIT = Path(__file__).parent
LOOKING_ON = {"bench", "bundle", "config", "report"}  # packages that decide no stage's result
IMAGE = "TOOLKIT_IMAGE"  # environment variable that a container sets to the digest it is made from


def relative(path: Path | str) -> str:
    """`path` relative to the working directory where it lies inside it, else its last two parts: never an absolute path."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as named
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return "/".join(path.parts[-2:])


def describe(paths: Mapping[str, Path | str], known: Mapping[Path, str] = MappingProxyType({})) -> dict[str, dict[str, Any]]:
    """`{name: {path, sha256, bytes}}` of existing files; `known`: hashes that need not be computed again."""
    return {
        name: {"path": relative(path), "sha256": known.get(Path(path)) or sha256(path), "bytes": Path(path).stat().st_size}
        for name, path in paths.items()
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of `packages`; one that is absent is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def code() -> str:
    """SHA-256 over names and contents of the toolkit's files that can decide a stage's result."""
    files = sorted(
        (path.relative_to(TOOLKIT).as_posix(), path)
        for path in TOOLKIT.rglob("*")
        if path.suffix in (".py", ".yaml") and path.relative_to(TOOLKIT).parts[0] not in LOOKING_ON
    )
    return hashlib.sha256("".join(f"{name} {sha256(path)}\n" for name, path in files).encode()).hexdigest()


@cache
def lock(folder: Path = TOOLKIT.parent / "requirements") -> str | None:
    """SHA-256 of the locks (common and torch's) that describe this environment; None when a locked package has another version here."""
    torch = versions("torch").get("torch", "")
    texts = [folder / "common.lock", folder / f"torch-{'cpu' if torch.endswith('+cpu') else 'cuda'}.lock"]
    if not all(path.is_file() for path in texts):
        return None
    text = "".join(path.read_text(encoding="utf-8") for path in texts)
    for package, pinned in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE):
        found = versions(package).get(package)
        # A build's own suffix ("+cu130") is no part of a version that is pinned without one.
        if found is not None and found != pinned and found.partition("+")[0] != pinned:
            return None
    return hashlib.sha256(text.encode()).hexdigest()


def driver(device: str) -> str | None:
    """Version of the NVIDIA driver, where `device` (as a record names it) is a GPU."""
    if device == "cpu":
        return None
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    if status := nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        raise UserError(f"the version of the NVIDIA driver cannot be read (NVML status {status}): check that nvidia-smi works")
    nvml.nvmlShutdown()
    return text.value.decode()


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
    known: Mapping[Path, str] = MappingProxyType({}),
) -> None:
    """Write the record of `stage` to `path`, atomically and after all its outputs exist.

    inputs and outputs: name -> file. settings: what was effective, seeds included. results: the numbers the stage found.
    known: hashes of files that need not be computed again.
    """
    write_json(
        path,
        {
            "record": VERSION,
            "stage": stage,
            "inputs": describe(inputs, known),
            "outputs": describe(outputs, known),
            "settings": dict(settings),
            "results": dict(results),
            "versions": versions(*packages),
            "device": device,
            "driver": driver(device),
            "code": code(),
            "lock": lock(),
            "image": os.environ.get(IMAGE),
        },
    )


class Listed(BaseModel):
    """A file that a record names."""

    path: str
    sha256: str


class Record(BaseModel):
    """What a stage reads in the record of the one before; `file` is where the record was read."""

    file: Path
    stage: str
    inputs: dict[str, Listed]
    outputs: dict[str, Listed]
    settings: dict[str, Any]
    results: dict[str, Any]

    def output(self, path: Path, name: str | None = None) -> str:
        """SHA-256 of the file at `path`; UserError unless it is the one that the stage wrote and calls `name`, as a rule as the file."""
        name = name or path.name
        if name not in self.outputs:
            raise UserError(f"{path} is not among the files that {self.file} lists: move it away, or run the stage that writes it again")
        if not path.is_file():
            raise UserError(f"{path} does not exist, {self.file} lists it: run the stage that writes it again")
        if (digest := sha256(path)) != self.outputs[name].sha256:
            raise UserError(f"{path} is not the file that {self.file} lists (sha256): restore it, or run the stage that writes it again")
        return digest


def read_record(path: Path, stage: str) -> Record:
    """The record of `stage` at `path`; UserError when there is none, or one that lacks something or is of another stage."""
    value = read_json(path)
    try:
        record = Record.model_validate({**value, "file": path} if isinstance(value, dict) else value)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is not the record of a stage: {'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
    if record.stage != stage:
        raise UserError(f"{path} is the record of the stage {record.stage!r}, not of {stage!r}")
    return record
