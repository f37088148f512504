"""The family's language models as parts: what of a config.json is read, and where one differs from another.

What they share is assumed elsewhere: decoder blocks of attention (q, k, v, o_proj) and MLP (gate, up,
down_proj), an RMSNorm before each, rotary positions, any number of key and value heads.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, ValidationError
from transformers import GemmaConfig, LlamaConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from toolkit.errors import UserError
from toolkit.mgm.folder import ARCHITECTURES

Size = Annotated[int, Field(ge=1, le=1 << 24)]
Layers = Annotated[int, Field(ge=1, le=1 << 9)]
Activation = Annotated[str, Field(pattern=f"^({'|'.join(ACT2FN)})$")]
Settings = TypeVar("Settings", bound=BaseModel)
GATES = ("gelu", "silu")  # activations of an MLP's gate that kernels know; gelu: the exact form, by erf


def checked(model: type[Settings], raw: Any, source: str) -> Settings:
    """`raw` as `model`; UserError, naming `source`, for a key that is missing or that has no such value."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{source}: {'.'.join(map(str, first['loc'])) or model.__name__}: {first['msg']}"
        ) from None


class LanguageModel(BaseModel):
    """What of a language model's config.json is read; what a file leaves out is left out of what is written.

    architecture, model_type: of an MGM with this language model, as written here. also: other names that
    checkpoints have for it, with images or without.
    """

    model_config = ConfigDict(strict=True, frozen=True)
    architecture: ClassVar[str]
    model_type: ClassVar[str]
    also: ClassVar[frozenset[str]]

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size | None = None
    hidden_act: Activation
    max_position_embeddings: Size
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat = 10000.0
    attention_bias: bool = False
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    initializer_range: PositiveFloat = 0.02
    bos_token_id: NonNegativeInt
    eos_token_id: NonNegativeInt | list[NonNegativeInt]
    pad_token_id: NonNegativeInt | None = None
    tie_word_embeddings: bool = False

    @classmethod
    def names(cls) -> frozenset[str]:
        """What `architectures` and `model_type` may say."""
        return cls.also | {cls.architecture, cls.model_type}

    @property
    def embedding_scale(self) -> float:
        """What embeddings, those of image tokens too, are multiplied by before the first layer."""
        return 1.0

    def transformers(self) -> PreTrainedConfig:
        """Transformers' configuration of the language model alone."""
        return LlamaConfig(**self.model_dump(exclude_unset=True))

    def to_json(self) -> dict[str, Any]:
        """The keys of config.json."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **self.model_dump(exclude_unset=True),
            "tie_word_embeddings": self.tie_word_embeddings,
        }


class Llama(LanguageModel):
    """Vicuna-7B and 13B, Llama-3-8B."""

    architecture = ARCHITECTURES["llama"]
    model_type = "mgm"
    also = frozenset({"MiniGeminiLlamaForCausalLM", "LlamaForCausalLM", "mini_gemini", "llama"})

    mlp_bias: Literal[False] = False


class Gemma(LanguageModel):
    """Gemma-2B. The released checkpoint has the names from before the project was renamed."""

    architecture = ARCHITECTURES["gemma"]
    model_type = "mgm_gemma"
    also = frozenset({"MiniGeminiGemmaForCausalLM", "GemmaForCausalLM", "mini_gemini_gemma", "gemma"})

    head_dim: Size
    pad_token_id: NonNegativeInt
    tie_word_embeddings: Literal[True] = True

    @property
    def embedding_scale(self) -> float:
        return self.hidden_size**0.5

    def transformers(self) -> PreTrainedConfig:
        """Transformers' configuration with the activation as written.

        The official model ran on transformers 4.38, which takes `hidden_act` literally ("gelu" is the exact
        erf form); newer versions rewrite it to the tanh form, so it is set again after construction.
        """
        config = GemmaConfig(**self.model_dump(exclude_unset=True, exclude={"hidden_act"}))
        config.hidden_act = self.hidden_act
        return config


LANGUAGE_MODELS: tuple[type[LanguageModel], ...] = (Gemma, Llama)


def language_model(raw: dict[str, Any], source: str) -> LanguageModel:
    """The language model that a config.json describes, alone or within an MGM; UserError, naming `source`,
    for another one, and for a key that is missing or that has no such value."""
    stated = raw.get("architectures")
    stated = stated[:1] if isinstance(stated, list) else [stated]
    names = {name for name in (*stated, raw.get("model_type")) if name is not None}
    kinds = [kind for kind in LANGUAGE_MODELS if names and names <= kind.names()]
    if not kinds:
        known = ", ".join(
            sorted(name for kind in LANGUAGE_MODELS for name in kind.names() if name[0].isupper())
        )
        raise UserError(
            f"{source} names the architecture {', '.join(map(repr, names))}: it is one of {known}, and "
            "model_type says the same"
        )
    # where transformers 5 writes what is rope_theta before
    rope = raw.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    if theta not in (None, LanguageModel.model_fields["rope_theta"].default):
        raw = {"rope_theta": theta, **raw}
    model = checked(kinds[0], raw, source)
    if model.num_attention_heads % model.num_key_value_heads:
        raise UserError(
            f"{source}: num_attention_heads {model.num_attention_heads} is not a multiple of "
            "num_key_value_heads"
        )
    plain = {"rope_theta": model.rope_theta, "rope_type": "default"}
    if raw.get("rope_scaling") is not None or rope not in (None, plain):
        raise UserError(f"{source}: rope_scaling and rope_parameters other than {plain} are not supported")
    return model
