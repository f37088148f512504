"""The record (`run.json`) that every stage leaves behind: what went in, what came out, how.

A record holds nothing that differs between two runs on one machine: no times, host names or absolute paths.
Two clones of one commit state the same code, whatever their history and folder.
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
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from toolkit import code
from toolkit.contest import stages
from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json

VERSION = 2
ROOT = Path(__file__).parents[2]
IMAGE = "TOOLKIT_IMAGE"  # environment variable that a container sets to the digest it is made from


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hexadecimal")]


class File(BaseModel):
    """A file's place and bytes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    path: str = Field(pattern=r"^[^/]", description="relative to the project's folder")
    sha256: Digest
    bytes: int = Field(ge=0, description="size")


class Record(BaseModel):
    """run.json or merge.json of a stage: no times, host names or absolute paths."""

    model_config = ConfigDict(extra="forbid", strict=True)

    record: Literal[2] = Field(description="version of this format")
    stage: str
    inputs: dict[str, File] = Field(description="what the stage read")
    outputs: dict[str, File] = Field(description="what it wrote")
    settings: dict[str, Any] = Field(description="what was effective, seeds included")
    results: dict[str, Any] = Field(description="numbers that the stage computed")
    versions: dict[str, str] = Field(description="installed packages that matter to it")
    device: str = Field(description="what it computed on")
    driver: str | None = Field(description="version of the NVIDIA driver; null on a CPU")
    code: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 over the toolkit's files that can decide a stage's result",
    )
    lock: str | None = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the package locks; null when the environment was not the locked one",
    )
    image: str | None = Field(description="digest of the container's image; null outside a container")

    _file: str = PrivateAttr("")

    @property
    def file(self) -> str:
        """Where the record was read."""
        return self._file

    def output(self, path: Path, name: str | None = None) -> str:
        """SHA-256 of the file at `path`; UserError unless it is the file that the stage wrote and calls
        `name`, as a rule as the file."""
        name = name or path.name
        if name not in self.outputs:
            raise UserError(
                f"{path} is not among the files that {self.file} lists: move it away, or run the stage that "
                "writes it again"
            )
        if not path.is_file():
            raise UserError(
                f"{path} does not exist, {self.file} lists it: run the stage that writes it again"
            )
        if (digest := sha256(path)) != self.outputs[name].sha256:
            raise UserError(
                f"{path} is not the file that {self.file} lists (sha256): restore it, or run the stage that "
                "writes it again"
            )
        return digest


def relative(path: Path | str) -> str:
    """`path` relative to the working directory where it lies inside it, else its last two parts: never an
    absolute path."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as named
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return "/".join(path.parts[-2:])


def describe(
    paths: Mapping[str, Path | str], known: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """`{name: {path, sha256, bytes}}` of existing files; `known`: hashes that need not be computed again."""
    return {
        name: {
            "path": relative(path),
            "sha256": known.get(Path(path)) or sha256(path),
            "bytes": Path(path).stat().st_size,
        }
        for name, path in paths.items()
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of `packages`; an absent package is left out."""
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def locks(folder: Path) -> list[Path]:
    """The locks in `folder` that serve this environment: what all share, and that of its torch, for the CPU,
    CUDA 12 or CUDA 13."""
    installed, older = versions("torch").get("torch", ""), folder / "torch-cuda12.lock"
    # wheels of PyTorch's own index have a suffix ("+cu128"), which is not part of a version that is pinned
    pinned = rf"^torch=={re.escape(installed.partition('+')[0])}(\s|$)"
    if installed.endswith("+cpu"):
        kind = "cpu"
    elif older.is_file() and re.search(pinned, older.read_text(encoding="utf-8"), re.MULTILINE):
        kind = "cuda12"
    else:
        kind = "cuda"
    return [folder / "common.lock", folder / f"torch-{kind}.lock"]


@cache
def lock(folder: Path = ROOT / "requirements") -> str | None:
    """SHA-256 of the locks (common and torch's) that describe this environment; None when a locked package
    has another version here."""
    texts = locks(folder)
    if not all(path.is_file() for path in texts):
        return None
    text = "".join(path.read_text(encoding="utf-8") for path in texts)
    for package, pinned in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE):
        installed = versions(package).get(package)
        # A build's own suffix ("+cu130") is not part of a version that is pinned without one.
        if installed is not None and installed != pinned and installed.partition("+")[0] != pinned:
            return None
    return hashlib.sha256(text.encode()).hexdigest()


def driver(device: str) -> str | None:
    """Version of the NVIDIA driver, where `device` (as a record names it) is a GPU."""
    if device == "cpu":
        return None
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    if status := nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        raise UserError(
            f"the version of the NVIDIA driver cannot be read (NVML status {status}): check that nvidia-smi "
            "works"
        )
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

    inputs and outputs: name -> file. settings: what was effective, seeds included. results: the numbers the
    stage found. known: hashes of files that need not be computed again.
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
            "code": code.digest(*stages.MODULES),
            "lock": lock(),
            "image": os.environ.get(IMAGE),
        },
    )


def read_record(path: Path, stage: str) -> Record:
    """The record of `stage` at `path`; UserError when there is none, or a record that lacks something or is
    of another stage."""
    record = record_of(read_json(path), str(path))
    if record.stage != stage:
        raise UserError(f"{path} is the record of the stage {record.stage!r}, not of {stage!r}")
    return record


def record_of(value: Any, file: str) -> Record:
    """The record that a file holds, from its JSON; UserError for what is none. file: where it was read, for
    messages."""
    try:
        record = Record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"{file} is not a record of a stage: {key}: {first['msg']}") from None
    record._file = file
    return record
