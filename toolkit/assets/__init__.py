"""Models and data sets by name: where each comes from, what it must hash to, what it is used for
(registry.yaml).

`python -m toolkit assets fetch --asset NAME --output input/NAME`
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from toolkit.errors import UserError
from toolkit.files import read_yaml

NAME = "toolkit/assets/registry.yaml"
PATH = Path(__file__).parent / "registry.yaml"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: str = Field(description="what the asset is for, in words")
    serves: str = Field(description="key of `assets` in a configuration that may name it")
    licence: str = Field(description="SPDX identifier or where the terms are")
    files: dict[str, str] = Field(
        default={}, description="name that rules use: path inside the asset's folder"
    )


class World(_Entry):
    """Data drawn by the embedded world's generator."""

    kind: Literal["world"]
    part: Literal["seed", "instruction", "evaluation"]
    seed: int = Field(description="of the generator")
    rows: int | None = Field(default=None, gt=0, description="or questions; by default the world's own")
    side: int | None = Field(default=None, gt=0, description="of the images, in pixels")


class Zoo(_Entry):
    """A tiny trained model shipped in toolkit/world/zoo."""

    kind: Literal["zoo"]
    folder: str = Field(description="folder in toolkit/world/zoo")


class Random(_Entry):
    """A model of the published size with random weights (toolkit/rehearsal/models.py)."""

    kind: Literal["random"]
    model: Literal["gemma", "clip", "convnext", "captioner"]


Address = Annotated[str, StringConstraints(pattern=r"^https?://[^/]")]


class Download(BaseModel):
    """One file to fetch. A .tar.gz holds one folder: what is in it goes into the asset's folder."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: Address
    mirrors: list[Address] = Field(
        default=[], description="other addresses of the same bytes, tried in order"
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="unknown: the file is refused until it is filled in",
    )
    bytes: int | None = Field(default=None, ge=0, description="size, where it is known")
    name: str = Field(
        description="path inside the asset's folder; an archive lies there until it is unpacked"
    )


class Url(_Entry):
    """Files from the network."""

    kind: Literal["url"]
    downloads: list[Download]


Entry = Annotated[World | Zoo | Random | Url, Field(discriminator="kind")]


class _Registry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    assets: dict[str, Entry]


@cache
def registry() -> dict[str, Entry]:
    """All assets by name."""
    try:
        return _Registry.model_validate({"assets": read_yaml(PATH)}).assets
    except ValidationError as error:
        raise UserError(f"{NAME} cannot be used: {' '.join(str(error).split())}") from None


def entry(name: str) -> Entry:
    """The asset called `name`; UserError lists the known ones otherwise."""
    if name not in registry():
        raise UserError(f"unknown asset {name!r}: {NAME} knows {', '.join(sorted(registry()))}")
    return registry()[name]
