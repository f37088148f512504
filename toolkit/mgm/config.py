"""What an MGM consists of: the language model, two towers and how images become tokens."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from transformers import CLIPVisionConfig

from toolkit.errors import UserError
from toolkit.mgm.language import Activation, LanguageModel, Layers, Size, checked, language_model

Side = Annotated[int, Field(ge=1, le=1 << 12)]


class Clip(BaseModel):
    """What of a CLIP vision tower's configuration is read."""

    model_config = ConfigDict(strict=True)

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    image_size: Side
    patch_size: Side
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: PositiveFloat = 1e-5


CLIP_KEYS = tuple(Clip.model_fields)


def clip_settings(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """The keys of a CLIP vision tower's configuration that are read; UserError, naming `source`, for a key
    that is missing or that has no such value."""
    clip = checked(Clip, raw, source)
    if clip.hidden_size % clip.num_attention_heads:
        raise UserError(
            f"{source}: the vision tower's hidden_size {clip.hidden_size} is not a multiple of "
            "num_attention_heads"
        )
    return {key: raw[key] for key in CLIP_KEYS if key in raw}


@dataclass(frozen=True)
class MGMConfig:
    """Sizes and settings of one model.

    clip: keyword arguments of CLIPVisionConfig. depths, dims: blocks and channels of the four ConvNeXt
    stages. image_size_aux: side of the high-resolution image, pixels. model_max_length: tokens a sequence,
    image tokens included. image_grid g > 1 cuts the image into g x g crops; image_global adds the whole
    image: the last input, the first tokens.
    """

    language: LanguageModel
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
        for name in ("image_size_aux", "image_grid", "model_max_length"):
            if type(value := getattr(self, name)) is not int or not 1 <= value <= 1 << 16:
                raise UserError(f"{name} is {value!r}: it is a number from 1")
        if (
            type(self.select_layer) is not int
            or not -self.clip.get("num_hidden_layers", 1 << 9) <= self.select_layer <= -1
        ):
            raise UserError(f"the vision tower has no layer {self.select_layer!r}: -2 is the last but one")
        if self.padding_side not in ("left", "right"):
            raise UserError(f"padding_side is {self.padding_side!r}: use 'left' or 'right'")
        if "patch_size" in self.clip:
            tokens = self.clip["image_size"] // self.clip["patch_size"] * self.image_grid
            if self.image_size_aux % 32 or tokens == 0 or self.image_size_aux // 4 % tokens:
                raise UserError(
                    f"image_size_aux is {self.image_size_aux}: it is a multiple of 32, and a quarter of it "
                    f"of {tokens}"
                )
        if self.image_global and self.image_grid == 1:
            raise UserError("image_global needs image_grid of at least 2")
        if self.image_aspect_ratio not in ("pad", "square"):
            raise UserError(f"image_aspect_ratio is {self.image_aspect_ratio!r}: use 'pad' or 'square'")

    def with_(self, **changes: Any) -> "MGMConfig":
        """A copy with some settings changed."""
        return replace(self, **changes)

    def clip_config(self) -> CLIPVisionConfig:
        """Configuration of the low-resolution tower."""
        return CLIPVisionConfig(**{key: self.clip[key] for key in CLIP_KEYS if key in self.clip})

    def to_json(self) -> dict[str, Any]:
        """config.json in the official layout; `mm_vision_tower_config` is ours, so that a checkpoint needs no
        tower folder to be read."""
        return {
            **self.language.to_json(),
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


def from_official(
    raw: dict[str, Any], shapes: dict[str, tuple[int, ...]], source: str = "config.json"
) -> MGMConfig:
    """MGMConfig of an official config.json and the shapes of its checkpoint, which tell the towers' sizes.

    raw: the parsed config.json, called `source` in errors; where it has no `mm_vision_tower_config` of ours,
    CLIP has 64 channels a head, as every published CLIP ViT. shapes: tensor name -> shape.
    """
    depths, dims = convnext_sizes(shapes, "model.vision_tower_aux.vision_stages.")
    if raw.get("mm_hidden_size_aux", sum(dims)) != sum(dims):
        raise UserError(
            f"{source}: mm_hidden_size_aux is {raw['mm_hidden_size_aux']!r}, the weights have {sum(dims)} "
            "channels"
        )
    clip = raw.get("mm_vision_tower_config") or clip_sizes(
        shapes, "model.vision_tower.vision_tower.vision_model."
    )
    return MGMConfig(
        language=language_model(raw, source),
        clip=clip_settings(clip, source),
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


def convnext_sizes(
    shapes: dict[str, tuple[int, ...]], prefix: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(depths, dims) of a ConvNeXt from the names `{prefix}{stage}.blocks.{block}.gamma`; UserError unless
    four stages have any."""
    blocks: dict[str, int] = {}
    dims: dict[str, int] = {}
    for name, shape in shapes.items():
        if name.startswith(prefix) and name.endswith(".gamma") and len(shape) == 1:
            stage = name[len(prefix) :].split(".")[0]
            blocks[stage] = blocks.get(stage, 0) + 1
            dims[stage] = shape[0]
    if not blocks:
        raise UserError(f"no tensor named {prefix}*.gamma: these weights hold no ConvNeXt tower")
    if sorted(blocks) != list("0123"):
        raise UserError(
            f"the tensors named {prefix}*.gamma are of the stages {', '.join(sorted(blocks))}: a ConvNeXt "
            "has 0 to 3"
        )
    return tuple(blocks[stage] for stage in "0123"), tuple(dims[stage] for stage in "0123")


def clip_sizes(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, Any]:
    """Sizes of a CLIP vision tower from its tensors, with 64 channels a head; UserError when they are
    absent."""
    try:
        width, _, patch, _ = shapes[f"{prefix}embeddings.patch_embedding.weight"]
        positions = shapes[f"{prefix}embeddings.position_embedding.weight"][0]
        mlp = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise UserError(f"no tensor named {error.args[0]}: these weights hold no CLIP tower") from None
    except (ValueError, IndexError):
        raise UserError(
            f"the tensors named {prefix}embeddings.* have not the dimensions of a CLIP tower's"
        ) from None
    layers = sum(name.startswith(prefix) and name.endswith("mlp.fc1.weight") for name in shapes)
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "image_size": patch * int((positions - 1) ** 0.5),
        "patch_size": patch,
    }
