"""Shape of what stages leave behind: an asset's manifest.json, and the record (run.json, merge.json) that toolkit/record.py writes.

Read by people and other tools through workflow/schemas/; `python -m toolkit config write` writes those from here.
"""

from typing import Any, Literal

from pydantic import Field

from toolkit.assets import Entry
from toolkit.config import Section

Digest = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hexadecimal")
Bytes = Field(ge=0, description="size")


class Content(Section):
    """A file's bytes."""

    sha256: str = Digest
    bytes: int = Bytes


class File(Section):
    """A file's place and bytes."""

    path: str = Field(pattern=r"^[^/]", description="relative to the project's folder")
    sha256: str = Digest
    bytes: int = Bytes


class Manifest(Section):
    """manifest.json of an asset: written last, so the asset is whole."""

    asset: str = Field(description="name in the registry")
    source: Entry = Field(description="its entry in the registry when it was fetched")
    files: dict[str, Content] = Field(description="by path inside the asset's folder")


class Record(Section):
    """run.json or merge.json of a stage: no times, host names or absolute paths."""

    record: Literal[2] = Field(description="version of this format")
    stage: str
    inputs: dict[str, File] = Field(description="what the stage read")
    outputs: dict[str, File] = Field(description="what it wrote")
    settings: dict[str, Any] = Field(description="what was effective, seeds included")
    results: dict[str, Any] = Field(description="numbers that the stage found")
    versions: dict[str, str] = Field(description="installed packages that matter to it")
    device: str = Field(description="what it computed on")
    driver: str | None = Field(description="version of the NVIDIA driver; null on a CPU")
    code: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 over the toolkit's files that can decide a stage's result")
    lock: str | None = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the package locks; null when the environment was not the locked one"
    )
    image: str | None = Field(description="digest of the container's image; null outside a container")
