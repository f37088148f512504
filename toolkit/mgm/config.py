"""What an MGM consists of: the language model, two towers and how images become tokens."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import CLIPVisionConfig, GemmaConfig

from toolkit.errors import UserError

# The released checkpoint uses the name before the project was renamed; its code the second; Gemma folders the third.
ARCHITECTURES = ("MiniGeminiGemmaForCausalLM", "MGMGemmaForCausalLM", "GemmaForCausalLM")
GEMMA_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "attention_bias", "attention_dropout", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
CLIP_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps"),
)


@dataclass(frozen=True)
class MGMConfig:
    """Sizes and settings of one model.

    gemma, clip: keyword arguments of GemmaConfig and CLIPVisionConfig. depths, dims: blocks and channels of the four ConvNeXt stages.
    image_size_aux: side of the high-resolution image, pixels. model_max_length: tokens a sequence, image tokens included.
    image_grid g > 1 cuts the image into g x g crops; image_global adds the whole image: the last input, the first tokens.
    """

    gemma: dict[str, Any]
    clip: dict[str, Any]
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    image_size_aux: int = 768
    image_aspect_ratio: str = "pad"
    image_grid: int = 1
    image_global: bool = False
    model_max_length: int = 2048
    padding_side: str = "right"
    select_layer: int = -2

    def __post_init__(self) -> None:
        if self.image_global and self.image_grid == 1:
            raise UserError("image_global needs image_grid of at least 2")
        if self.image_aspect_ratio not in ("pad", "square"):
            raise UserError(f"image_aspect_ratio is {self.image_aspect_ratio!r}: use 'pad' or 'square'")

    def with_(self, **changes: Any) -> "MGMConfig":
        """A copy with some settings changed."""
        return replace(self, **changes)

    def gemma_config(self) -> GemmaConfig:
        """Transformers' configuration with the activation as written.

        The official model ran on transformers 4.38, which takes `hidden_act` literally ("gelu" is the exact erf form); newer
        versions rewrite it to the tanh form, so it is set again after construction.
        """
        values = {key: self.gemma[key] for key in GEMMA_KEYS if key in self.gemma}
        activation = values.pop("hidden_act", "gelu")
        config = GemmaConfig(**values, tie_word_embeddings=True)
        config.hidden_act = activation
        return config

    def clip_config(self) -> CLIPVisionConfig:
        """Configuration of the low-resolution tower."""
        return CLIPVisionConfig(**{key: self.clip[key] for key in CLIP_KEYS if key in self.clip})

    def to_json(self) -> dict[str, Any]:
        """config.json in the official layout; `mm_vision_tower_config` is ours, so that a checkpoint needs no tower folder to be read."""
        return {
            "architectures": ["MGMGemmaForCausalLM"],
            "model_type": "mgm_gemma",
            **{key: self.gemma[key] for key in GEMMA_KEYS if key in self.gemma},
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_mm_proj": True,
            "mm_projector_type": "mlp2x_gelu",
            "mm_hidden_size": self.clip["hidden_size"],
            "mm_hidden_size_aux": sum(self.dims),
            "mm_vision_select_layer": self.select_layer,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "mm_vision_tower_config": {key: self.clip[key] for key in CLIP_KEYS if key in self.clip},
            "image_size_aux": self.image_size_aux,
            "image_aspect_ratio": self.image_aspect_ratio,
            "image_grid": self.image_grid,
            "image_global": self.image_global,
            "image_grid_pinpoints": None,
            "tokenizer_model_max_length": self.model_max_length,
            "tokenizer_padding_side": self.padding_side,
            "optimize_vision_tower": False,
            "optimize_vision_tower_aux": False,
        }


def from_official(raw: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> MGMConfig:
    """MGMConfig of an official config.json and the shapes of its checkpoint, which tell the towers' sizes.

    raw: the parsed config.json; where it has no `mm_vision_tower_config` of ours, CLIP has 64 channels a head, as every published
    CLIP ViT. shapes: tensor name -> shape.
    """
    architectures = raw.get("architectures") or [ARCHITECTURES[0]]
    if architectures[0] not in ARCHITECTURES:
        raise UserError(f"config.json names the architecture {architectures[0]!r}: MGM with Gemma is one of {', '.join(ARCHITECTURES)}")
    depths, dims = convnext_sizes(shapes, "model.vision_tower_aux.vision_stages.")
    known = {**{key: raw[key] for key in GEMMA_KEYS if key in raw}}
    return MGMConfig(
        gemma=known,
        clip=raw.get("mm_vision_tower_config") or clip_sizes(shapes, "model.vision_tower.vision_tower.vision_model."),
        depths=depths,
        dims=dims,
        image_size_aux=raw.get("image_size_aux", 768),
        image_aspect_ratio=raw.get("image_aspect_ratio") or "square",
        image_grid=raw.get("image_grid", 1),
        image_global=raw.get("image_global", False),
        model_max_length=raw.get("tokenizer_model_max_length", 2048),
        padding_side=raw.get("tokenizer_padding_side", "right"),
        select_layer=raw.get("mm_vision_select_layer", -2),
    )


def convnext_sizes(shapes: dict[str, tuple[int, ...]], prefix: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(depths, dims) of a ConvNeXt from the names `{prefix}{stage}.blocks.{block}.gamma`; UserError when there are none."""
    blocks: dict[int, int] = {}
    dims: dict[int, int] = {}
    for name, shape in shapes.items():
        if name.startswith(prefix) and name.endswith(".gamma"):
            stage = int(name[len(prefix) :].split(".")[0])
            blocks[stage] = blocks.get(stage, 0) + 1
            dims[stage] = shape[0]
    if not blocks:
        raise UserError(f"no tensor named {prefix}*.gamma: these weights hold no ConvNeXt tower")
    return tuple(blocks[stage] for stage in sorted(blocks)), tuple(dims[stage] for stage in sorted(dims))


def clip_sizes(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, Any]:
    """Sizes of a CLIP vision tower from its tensors, with 64 channels a head; UserError when they are absent."""
    try:
        width, _, patch, _ = shapes[f"{prefix}embeddings.patch_embedding.weight"]
        positions = shapes[f"{prefix}embeddings.position_embedding.weight"][0]
        mlp = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise UserError(f"no tensor named {error.args[0]}: these weights hold no CLIP tower") from None
    layers = sum(name.startswith(prefix) and name.endswith("mlp.fc1.weight") for name in shapes)
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "image_size": patch * int((positions - 1) ** 0.5),
        "patch_size": patch,
    }
