"""Models and data sets by name: where each comes from, what is published of its bytes, what it is used for
(registry.yaml), and the contestant's own (solution/assets.yaml).

`python -m toolkit assets fetch --asset NAME --output input/NAME`
"""

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from toolkit.errors import UserError
from toolkit.files import read_yaml
from toolkit.seeds import LIMIT

NAME = "toolkit/assets/registry.yaml"
PATH = Path(__file__).parent / "registry.yaml"
OWN = Path("solution/assets.yaml")  # packed with the entry, so that a reviewer knows the names too
ARCHIVES = (".tar.gz", ".zip")


def _inside(path: str) -> str:
    """A path that stays in its folder."""
    if "\\" in path or "\0" in path or path != str(PurePosixPath(path)) or path in (".", "manifest.json"):
        raise ValueError("must be a plain relative path")
    if path.startswith(("/", ".partial")) or ".." in path.split("/"):
        raise ValueError("must be a path inside the asset's folder")
    return path


Inside = Annotated[str, AfterValidator(_inside)]
Address = Annotated[str, StringConstraints(pattern=r"^https?://[^/]")]
# of a folder in input/
NAMES = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
AssetName = Annotated[str, StringConstraints(pattern=NAMES)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Entry(_Section):
    role: str = Field(description="what the asset is for, in words")
    serves: str = Field(description="key of `assets` in a configuration that may name it")
    licence: str = Field(description="SPDX identifier or where the terms are")
    files: dict[str, Inside] = Field(
        default={}, description="name that rules use: path inside the asset's folder"
    )

    @property
    def alone(self) -> set[str]:
        """Paths of the files that have an address of their own."""
        return set()

    def holds(self, path: str) -> bool:
        """Whether a file of an archive or of somebody's folder belongs to the asset: what lies beside the
        files that the entry names does not, but for folders."""
        return not self.files or "/" in path or path in {*self.files.values(), *self.alone}


class World(_Entry):
    """Data drawn by the embedded world's generator."""

    kind: Literal["world"]
    part: Literal["seed", "instruction", "evaluation", "development"]
    seed: int = Field(ge=0, lt=LIMIT, description="of the generator")
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


class Member(_Section):
    """A file inside an installed Python package."""

    path: Inside = Field(
        description="from the folder that holds the package's modules, or inside its archive"
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Package(_Entry):
    """Weights that come inside a Python package, which only some machines install."""

    kind: Literal["package"]
    package: str = Field(description="name of the distribution")
    extra: str = Field(description="`make setup EXTRAS={extra}` installs it")
    archive: Inside | None = Field(
        default=None, description="zip of the package that holds the files; null: they lie there as they are"
    )
    members: dict[Inside, Member] = Field(description="by path inside the asset's folder")


class Own(_Entry):
    """Data of the contestant's own: on this machine, by `assets adopt`; assets.lock holds its checksums."""

    kind: Literal["own"]


class File(_Section):
    """One file to fetch, and what is published of its bytes; an archive is unpacked."""

    name: Inside = Field(
        description="path inside the asset's folder; an archive lies in its .partial until it is unpacked"
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="null: assets.lock records it on first use"
    )
    bytes: int | None = Field(default=None, ge=0, description="size, where it is known")
    published_by: str | None = Field(default=None, description="who states the checksum")
    take: str = Field(
        default="*",
        description="folder of an archive whose content goes into the asset's folder; * is any one, . all",
    )
    into: Inside | None = Field(
        default=None, description="folder inside the asset's that an archive is unpacked to"
    )

    @model_validator(mode="after")
    def _stated(self) -> Self:
        if self.sha256 and not self.published_by:
            raise ValueError(f"{self.name}: published_by must say who states its sha256")
        return self

    @property
    def archive(self) -> bool:
        return self.name.endswith(ARCHIVES)


class Download(File):
    """A file with an address of its own."""

    url: Address
    mirrors: list[Address] = Field(
        default=[], description="other addresses of the same bytes, tried in order"
    )


def _one_archive(files: list) -> list:
    """What else lies in the folder is the archive's, which would not say of which one."""
    if sum(file.archive for file in files) > 1:
        raise ValueError("at most one archive")
    return files


class Url(_Entry):
    """Files from the network."""

    kind: Literal["url"]
    downloads: Annotated[list[Download], AfterValidator(_one_archive)]

    @property
    def alone(self) -> set[str]:
        return {file.name for file in self.downloads if not file.archive}


class Hub(_Entry):
    """Files of a repository of the Hugging Face Hub, or of whatever HF_ENDPOINT names."""

    kind: Literal["hub"]
    repository: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", description="owner/name")
    type: Literal["model", "dataset"] = "model"
    revision: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="commit; null: the newest on first use, then the one in assets.lock",
    )
    mirrors: list[Address] = Field(
        default=[], description="other addresses of the same bytes: /FILE is added"
    )
    downloads: Annotated[list[File], AfterValidator(_one_archive)]

    @property
    def alone(self) -> set[str]:
        return {file.name for file in self.downloads if not file.archive}


Entry = Annotated[World | Zoo | Random | Package | Own | Url | Hub, Field(discriminator="kind")]
AnyEntry = World | Zoo | Random | Package | Own | Url | Hub


class _Registry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    assets: dict[AssetName, Entry]


class _OwnRegistry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    assets: dict[AssetName, Own]


@cache
def _shipped() -> dict[str, AnyEntry]:
    try:
        return _Registry.model_validate({"assets": read_yaml(PATH)}).assets
    except ValidationError as error:
        raise UserError(f"{NAME} cannot be used: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first problem of a file of assets, with its keys."""
    keys = ".".join(str(part) for part in error.errors()[0]["loc"][1:] if part != "[key]")
    message = error.errors()[0]["msg"]
    return f"{keys and f'{keys}: '}{message[:1].lower()}{message[1:]}"


def own(path: Path = OWN) -> dict[str, Own]:
    """The assets of a solution/assets.yaml. It has no addresses: an entry of a stranger fetches nothing."""
    if not path.is_file():
        return {}
    try:
        entries = _OwnRegistry.model_validate({"assets": read_yaml(path) or {}}).assets
    except ValidationError as error:
        raise UserError(f"{path} cannot be used: {first_problem(error)}") from None
    if known := sorted(entries.keys() & _shipped().keys()):
        raise UserError(f"{path} names {known[0]}, which {NAME} already has: choose another name")
    return entries


def registry(path: Path = OWN) -> dict[str, AnyEntry]:
    """All assets by name, those of the solution/assets.yaml at `path` included."""
    return _shipped() | own(path)


def entry(name: str) -> AnyEntry:
    """The asset called `name`; UserError lists the known ones otherwise."""
    if name not in registry():
        raise UserError(f"unknown asset {name!r}: {NAME} knows {', '.join(sorted(registry()))}")
    return registry()[name]


def origin(entry: AnyEntry) -> list[str]:
    """Where an asset comes from: addresses, or in words."""
    match entry:
        case Url():
            return [file.url for file in entry.downloads]
        case Hub():
            kind = "datasets/" if entry.type == "dataset" else ""
            page = f"https://huggingface.co/{kind}{entry.repository}"
            return [f"{page}/tree/{entry.revision}" if entry.revision else page]
        case Own():
            return ["the contestant's own, see assets.lock"]
        case Package():
            return [f"the Python package {entry.package}"]
    return ["made by toolkit/world of this repository"]
