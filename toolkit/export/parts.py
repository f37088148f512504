"""What toolkit/mgm/config.py and language.py are to the model, without their checks: part of an exported
folder."""

from dataclasses import dataclass
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedConfig


class LanguageModel:
    """A language model by its configuration. embedding_scale: what image tokens are multiplied by."""

    embedding_scale = 1.0

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config

    def transformers(self) -> PreTrainedConfig:
        """The configuration that it was made of."""
        return self.config


class Llama(LanguageModel):
    """Vicuna and Llama-3."""


class Gemma(LanguageModel):
    """Gemma, whose embeddings are scaled."""

    @property
    def embedding_scale(self) -> float:  # type: ignore[override]
        return self.config.hidden_size**0.5


@dataclass(frozen=True)
class MGMConfig:
    """Sizes and settings of a model; the names are those of toolkit.mgm.config.MGMConfig."""

    language: LanguageModel
    clip: dict[str, Any]
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    image_size_aux: int
    image_aspect_ratio: str
    image_grid: int
    image_global: bool
    model_max_length: int
    padding_side: str
    select_layer: int

    @classmethod
    def of(cls, config: Any) -> "MGMConfig":
        """Of a configuration of transformers with the keys of an exported config.json."""
        language = Gemma if "gemma" in config.model_type else Llama
        return cls(
            language(config),
            config.mm_vision_tower_config,
            tuple(config.mm_vision_tower_aux_config["depths"]),
            tuple(config.mm_vision_tower_aux_config["dims"]),
            config.image_size_aux,
            config.image_aspect_ratio,
            config.image_grid,
            config.image_global,
            config.tokenizer_model_max_length,
            config.tokenizer_padding_side,
            config.mm_vision_select_layer,
        )

    def clip_config(self) -> CLIPVisionConfig:
        """Configuration of the low-resolution tower."""
        return CLIPVisionConfig(**self.clip)
