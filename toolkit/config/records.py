"""Shape of what commands leave behind beside the records of toolkit/contest/records.py: an asset's
manifest.json, contamination.json and validation.json.

Read by people and other tools through workflow/schemas/; `python -m toolkit config write` writes those from
here.
"""

from typing import Literal

from pydantic import Field

from toolkit.assets import Entry
from toolkit.config import Section
from toolkit.contest.records import File

Digest = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hexadecimal")
Bytes = Field(ge=0, description="size")


class Content(Section):
    """A file's bytes."""

    sha256: str = Digest
    bytes: int = Bytes


class Manifest(Section):
    """manifest.json of an asset: written last, so the asset is whole."""

    asset: str = Field(description="name in the registry")
    source: Entry = Field(description="its entry in the registry when it was fetched")
    files: dict[str, Content] = Field(description="by path inside the asset's folder")


class Finding(Section):
    """One problem that a check found."""

    id: str = Field(pattern=r"^[A-Z][0-9]$", description="of the check")
    severity: Literal["error", "warning", "exception"] = Field(
        description="exception: solution/exceptions.yaml covers it"
    )
    file: str = Field(min_length=1, description="relative to the project's folder")
    line: int | None = Field(default=None, ge=1, description="absent where no single line is meant")
    message: str = Field(min_length=1, description="what is wrong with the file")
    remedy: str = Field(min_length=1, description="what to do")
    reason: str | None = Field(default=None, min_length=1, description="of an exception")


class Limits(Section):
    """From where on two things are near-duplicates, see toolkit.evaluate.contamination."""

    hamming: int = Field(description="bits in which the hashes of two images may differ")
    correlation: float = Field(description="least of the two grey images, where the hashes are that near")
    certain: float = Field(description="correlation that needs no such hashes")
    words: int = Field(description="fewest of an evaluation text that means something")
    gram: int = Field(description="words in a row that are compared")
    share: float = Field(description="of an evaluation text's grams in a caption")


class Compared(Section):
    """What was compared."""

    rows: int = Field(ge=0, description="training rows")
    images: int = Field(ge=0, description="training images")
    evaluation_images: int = Field(ge=0)
    evaluation_texts: int = Field(ge=0, description="of enough words")
    unreadable: int = Field(ge=0, description="images of either side: compared by their bytes only")


class Pair(Section):
    """A training row and the evaluation item that it is like."""

    kind: Literal["image", "text"]
    training: str = Field(description="path of the image, or id of the row")
    evaluation: str = Field(description="benchmark and item")
    likeness: float = Field(description="correlation, 1 for the same bytes; or share of the grams")


class Contamination(Section):
    """contamination.json: training rows that are near-duplicates of evaluation items."""

    version: Literal[1] = Field(description="version of this format")
    inputs: dict[str, File]
    images: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 over hashes and paths of the training images, in order",
    )
    limits: Limits
    compared: Compared
    found: list[Pair]


class Ruleset(Section):
    """Which rules."""

    name: str
    version: int


class Check(Section):
    """One check and how much it found."""

    title: str
    findings: int = Field(ge=0)


class Validation(Section):
    """validation.json: everything that the checks of `bundle validate` found."""

    version: Literal[2] = Field(description="version of this format")
    experiment: str
    rules: Ruleset
    scale: str | None = Field(description="null where no record names one")
    division: str | None = Field(description="null where no record names one")
    valid: bool = Field(description="no finding is an error")
    errors: int = Field(ge=0)
    warnings: int = Field(ge=0)
    exceptions: int = Field(ge=0)
    checks: dict[str, Check] = Field(description="by id, also those that found nothing")
    findings: list[Finding]
    files: dict[str, str] = Field(description="SHA-256 of every file that is packed, but for this one")
