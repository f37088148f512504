"""The contest's rules as data: `rules/{name}.yaml`. Path templates know {size} and {experiment}.

A set of rules may extend another (`extends: NAME`): see `extend`. The files of the benchmarks in `answers`
are required beside those that are listed.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.base import Bounds
from toolkit.errors import UserError
from toolkit.seeds import experiment_of

HERE = Path(__file__).parent / "rules"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answers(_Frozen):
    """Bounds beyond which a benchmark's answers cannot come from a model that looks at images."""

    distinct: int = Field(description="fewest different answers")
    top_share: float = Field(description="largest share of the most frequent answer, 0 to 1")
    empty_share: float = Field(description="largest share of empty answers, 0 to 1")
    same_share: float = Field(
        description="largest share of answers that may stay the same with another question's image, 0 to 1"
    )


class Numbers(_Frozen):
    """Hyper-parameters of one training stage that nobody may change; the names are those of
    toolkit.scales.Stage."""

    global_batch: int = Field(description="samples an optimizer step")
    learning_rate: float
    warmup_ratio: float = Field(
        description="share of the steps that warm up linearly; half a cosine to 0 follows"
    )
    weight_decay: float
    max_grad_norm: float = Field(description="gradients are clipped to this L2 norm")
    epochs: int
    image_aspect_ratio: str = Field(description="pad or square")
    group_by_modality_length: bool


class Sizes(_Frozen):
    """How much a model reads; the names are those of toolkit.scales.Sight."""

    model_max_length: int = Field(description="tokens a sequence, image tokens included")
    image_size_aux: int = Field(description="side of the high-resolution image, pixels")
    image_grid: int = Field(1, description="crops along each side of an image")
    image_global: bool = Field(False, description="whether the whole image is seen beside the crops")


class Fixed(Sizes):
    """All fixed hyper-parameters, by division where they differ; its `Sizes` are the finished model's."""

    first_stage: Sizes | None = Field(None, description="those of the first stage, where they are others")
    template: str = Field(description="conversation template")
    pretrain: Numbers
    finetune: dict[str, Numbers] = Field(description="by division")

    def sizes(self, stage: str) -> Sizes:
        """How much the model of a stage reads, "pretrain" or "finetune"."""
        return self.first_stage if self.first_stage and stage == "pretrain" else self


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
    assets: dict[str, list[str]] = Field(
        description="by role, those of which one has to play it; none: any; roles that are not here are free"
    )
    weights: Literal["required", "forbidden"] = Field(
        description="whether the projector and the merged model belong to the entry"
    )
    limits: Limits
    fixed: Fixed
    editable: list[str] = Field(description="numbers of a scale's stages that an entry may choose")
    fixed_files: dict[str, str] = Field(
        description="SHA-256 by name of files of the kit that nobody may change"
    )
    fixed_parts: dict[str, str] = Field(
        description="the same for scripts with an editable block: of what follows the block"
    )
    synthesis: list[str] = Field(description="Data-Juicer operators of which the recipe must have one")
    top_level: list[str] = Field(description="all that may stand at the top of submit.zip")
    required: dict[str, list[str]] = Field(
        description="files that must be there: any division, or one of them"
    )
    compared: list[str] = Field(
        description="files of every other run of the comparison; its answers and scores are required too"
    )
    adapter: list[str] = Field(
        default=[], description="of such a run's finetuning in division open, required to re-evaluate it"
    )
    packed: list[str] = Field(description="glob patterns of further files that are packed where they exist")
    merge_tolerance: float = Field(
        description="largest difference of logits between adapter model and merged model"
    )
    answers: dict[str, Answers] = Field(description="by benchmark; each of them has to be answered")
    markers: list[str] = Field(description="words that give simulated answers away, lower case")
    rehearsal: bool = Field(
        default=False, description="of models with random weights: what they answer is not judged"
    )
    readme_sections: list[str] = Field(description="headings that solution/readme must have, lower case")

    def bounds(self, benchmark: str) -> Answers | Bounds:
        """Those of a benchmark: the rules' own, or the benchmark's where the rules do not ask for it."""
        return self.answers.get(benchmark, BENCHMARKS[benchmark].bounds)

    def foreign(self, named: Mapping[str, str]) -> Iterator[str]:
        """A sentence for each asset, by role, that the rules do not admit."""
        for role, admitted in self.assets.items():
            if admitted and named[role] not in admitted:
                yield f"assets.{role} is {named[role]}, the rules {self.name} fix {' or '.join(admitted)}"

    def fill(self, template: str, experiment: str) -> str:
        return template.format(size=self.size, experiment=experiment, data=experiment_of(experiment))


def names() -> list[str]:
    """Names of all sets of rules."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def file(name: str) -> Path:
    """The file of the rules called `name`; UserError lists the known rules otherwise."""
    if name not in names():
        raise UserError(f"unknown rules {name!r}: choose one of {', '.join(names())}")
    return HERE / f"{name}.yaml"


def files(name: str) -> list[Path]:
    """The file of the rules called `name` and of those that they extend, the last first; UserError for rules
    that extend themselves."""
    paths = [file(name)]
    while extended := yaml.safe_load(paths[-1].read_text(encoding="utf-8")).get("extends"):
        if file(extended) in paths:
            raise UserError(f"{paths[-1].name} extends {extended}, which extends it")
        paths.append(file(extended))
    return paths


def extend(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`base` with `overrides`: sections are merged, a key with a plus sign adds to the list of `base`,
    all else is replaced."""
    result = dict(base)
    for key, value in overrides.items():
        if key.endswith("+"):
            key = key.removesuffix("+")
            result[key] = [*result.get(key, []), *value]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = extend(result[key], value)
        else:
            result[key] = value
    return result


@cache
def load(name: str) -> Rules:
    """The rules called `name`; UserError lists the known rules otherwise."""
    values: dict[str, Any] = {}
    for path in reversed(files(name)):
        values = extend(values, yaml.safe_load(path.read_text(encoding="utf-8")))
    values.pop("extends", None)
    try:
        return Rules.model_validate({"name": name} | values)
    except ValidationError as error:
        raise UserError(f"{name}.yaml is not a valid set of rules: {error}") from None
