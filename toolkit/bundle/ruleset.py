"""The contest's rules as data: `rules/{name}.yaml`. Path templates know {size} and {experiment}."""

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import UserError

HERE = Path(__file__).parent / "rules"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answers(_Frozen):
    """Bounds beyond which a benchmark's answers cannot come from a model that looks at images."""

    distinct: int = Field(description="fewest different answers")
    top_share: float = Field(description="largest share of the most frequent answer, 0 to 1")
    empty_share: float = Field(description="largest share of empty answers, 0 to 1")
    same_share: float = Field(description="largest share of answers that may stay the same with another question's image, 0 to 1")


class Numbers(_Frozen):
    """Hyper-parameters of one training stage that nobody may change; the names are those of toolkit.scales.Stage."""

    global_batch: int = Field(description="samples an optimizer step")
    learning_rate: float
    warmup_ratio: float = Field(description="share of the steps that warm up linearly; half a cosine to 0 follows")
    weight_decay: float
    max_grad_norm: float = Field(description="gradients are clipped to this L2 norm")
    epochs: int
    image_aspect_ratio: str = Field(description="pad or square")
    group_by_modality_length: bool


class Fixed(_Frozen):
    """All fixed hyper-parameters, by division where they differ."""

    model_max_length: int = Field(description="tokens a sequence, image tokens included")
    image_size_aux: int = Field(description="side of the high-resolution image, pixels")
    template: str = Field(description="conversation template")
    pretrain: Numbers
    finetune: dict[str, Numbers] = Field(description="by division")


class Limits(_Frozen):
    """Largest archive, measured before compression."""

    files: int = Field(gt=0)
    file_bytes: int = Field(gt=0, description="of one file")
    total_bytes: int = Field(gt=0)


class Rules(_Frozen):
    """One set of rules."""

    name: str
    version: int
    about: str = Field(description="where the rules come from")
    size: str = Field(description="stands in the folder names MGM-{size}-...")
    scales: list[str] = Field(description="scales of toolkit.scales that may be entered")
    divisions: list[str] = Field(description="closed: the kit's full finetuning; open: LoRA")
    cap: int = Field(description="most training rows of the pretraining")
    weights: Literal["required", "forbidden"] = Field(description="whether the projector and the merged model belong to the entry")
    limits: Limits
    fixed: Fixed
    editable: list[str] = Field(description="numbers of a scale's stages that an entry may choose")
    fixed_files: dict[str, str] = Field(description="SHA-256 by name of files of the kit that nobody may change")
    fixed_parts: dict[str, str] = Field(description="the same for scripts with an editable block: of what follows the block")
    synthesis: list[str] = Field(description="Data-Juicer operators of which the recipe must have one")
    top_level: list[str] = Field(description="all that may stand at the top of submit.zip")
    required: dict[str, list[str]] = Field(description="files that must be there: any division, or one of them")
    packed: list[str] = Field(description="glob patterns of further files that are packed where they exist")
    merge_tolerance: float = Field(description="largest difference of logits between adapter model and merged model")
    answers: dict[str, Answers] = Field(description="by benchmark")
    markers: list[str] = Field(description="words that give simulated answers away, lower case")
    readme_sections: list[str] = Field(description="headings that solution/readme must have, lower case")

    def fill(self, template: str, experiment: str) -> str:
        return template.format(size=self.size, experiment=experiment)


def names() -> list[str]:
    """Names of all sets of rules."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


@cache
def load(name: str) -> Rules:
    """The rules called `name`; UserError lists the known ones otherwise."""
    if name not in names():
        raise UserError(f"unknown rules {name!r}: choose one of {', '.join(names())}")
    path = HERE / f"{name}.yaml"
    try:
        return Rules.model_validate({"name": name} | yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise UserError(f"{path.name} is not a valid set of rules: {error}") from None
