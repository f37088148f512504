"""The frozen contest numbers: one YAML a scale, no override flags; a test pins the bytes of each file.

`tiny` and `tiny_llama` are the embedded world; `baseline_10k` and `track_200k` carry the kit's numbers
(train_mgm_2b_stage_1*.sh), `family_*` those of the official scripts of MGM's other members.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from toolkit.errors import UserError

HERE = Path(__file__).parent


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Frozen):
    """Numbers of one training stage; the optimizer is AdamW (0.9, 0.999, 1e-8) with a cosine schedule."""

    global_batch: int = Field(description="samples an optimizer step")
    micro_batch: int = Field(
        description="largest micro-batch (samples a forward pass); accumulation follows from it"
    )
    learning_rate: float
    warmup_ratio: float = Field(description="share of the steps that warm up linearly")
    weight_decay: float
    max_grad_norm: float = Field(description="gradients are clipped to this L2 norm")
    epochs: Literal[1]
    image_aspect_ratio: str = Field(description="pad or square")
    group_by_modality_length: bool
    save_steps: int = Field(description="optimizer steps between resumable checkpoints")


class Sight(_Frozen):
    """What a model reads of an image, and how much in all."""

    model_max_length: int = Field(description="tokens a sequence, image tokens included")
    image_tokens: int = Field(description="of them, those of an image")
    image_size_aux: int = Field(description="side of the high-resolution image, pixels")
    image_grid: int = Field(1, description="g: an image is cut into g x g crops for CLIP; 1: not cut")
    image_global: bool = Field(False, description="whether CLIP sees the whole image beside the crops")

    def settings(self) -> dict[str, Any]:
        """The same as fields of MGMConfig, which counts the image's tokens itself."""
        return self.model_dump(include=set(Sight.model_fields) - {"image_tokens"})


class Scale(Sight):
    """One row of the table; its `Sight` is the finished model's."""

    name: str
    size: str = Field(description="stands in the folder names MGM-{size}-…")
    cap: int = Field(description="most training rows; a larger set is sampled with random.seed(1024)")
    first_stage: Sight | None = Field(None, description="what the first stage reads, where it is less (HD)")
    language_model: Literal["gemma", "llama"] = Field(
        "gemma", description="kind of language model that the asset `llm` has to be"
    )
    template: str = Field(description="of conversations")
    caption_template: str | None = Field(None, description="of the first stage, where it is another")
    pretrain: Stage
    finetune: dict[str, Stage] = Field(
        description="by division: closed (full, the kit's recipe), open (LoRA)"
    )
    expected: dict[str, str] = Field(description="what the scale takes: hours, memory, disk")

    @property
    def embedded(self) -> bool:
        """Whether it is one of the embedded world, trained without a GPU."""
        return self.size.startswith("Tiny")

    def sight(self, stage: Stage) -> Sight:
        """What one of its stages reads."""
        return self.first_stage if self.first_stage and stage == self.pretrain else self

    @property
    def question_tokens(self) -> int:
        """Most tokens of a question about an image that leave room for an answer."""
        return self.model_max_length - self.image_tokens - 1


def names() -> list[str]:
    """Names of all scales."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load(name: str) -> Scale:
    """The scale called `name`; UserError lists the known scales otherwise."""
    if name not in names():
        raise UserError(f"unknown scale {name!r}: choose one of {', '.join(names())}")
    return Scale.model_validate({"name": name} | yaml.safe_load((HERE / f"{name}.yaml").read_text()))
