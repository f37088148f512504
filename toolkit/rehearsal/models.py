"""Models of the published sizes with random weights, in the published formats: what a rehearsal trains.

    python -m toolkit rehearsal model --model gemma --output DIR

Each is the embedded world's model of that kind (toolkit/world/zoo) with the numbers of the published one; the
tokenizer stays the embedded world's. Same seed and kind of device, same bytes.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from toolkit.bench.synthetic import CONFIGS
from toolkit.errors import UserError
from toolkit.files import atomic, read_json, write_json
from toolkit.mgm.config import convnext_sizes
from toolkit.mgm.convnext import ConvNextTower

ZOO = Path(__file__).parent.parent / "world" / "zoo"
SEED = 1024
SHARD = "5GB"  # of a published checkpoint
MGM = CONFIGS["2B"]
# By model: what its files say otherwise than the embedded world's.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "gemma": {  # google/gemma-2b-it
        "config.json": {**MGM.language.model_dump(exclude_unset=True), "dtype": "bfloat16"},
        "tokenizer_config.json": {"model_max_length": 8192},
    },
    "clip": {  # openai/clip-vit-large-patch14-336
        "config.json": {
            "projection_dim": 768,
            "text_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "max_position_embeddings": 77,
                "num_attention_heads": 12,
                "num_hidden_layers": 12,
                "projection_dim": 768,
                "vocab_size": 49408,
            },
            "vision_config": {**MGM.clip, "projection_dim": 768},
        },
        "processor_config.json": {
            "image_processor": {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}
        },
    },
    "convnext": {  # laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup
        "open_clip_config.json": {
            "model_cfg": {
                "embed_dim": 768,
                "vision_cfg": {
                    "timm_model_name": "convnext_large",
                    "timm_model_args": {"dims": list(MGM.dims), "depths": list(MGM.depths)},
                    "image_size": 320,
                },
            }
        }
    },
    "captioner": {  # Salesforce/blip2-opt-2.7b, in bfloat16
        "config.json": {
            "dtype": "bfloat16",
            "num_query_tokens": 32,
            "qformer_config": {
                "cross_attention_frequency": 2,
                "encoder_hidden_size": 1408,
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_attention_heads": 12,
                "num_hidden_layers": 12,
                "vocab_size": 30522,
            },
            "text_config": {
                "ffn_dim": 10240,
                "hidden_size": 2560,
                "max_position_embeddings": 2048,
                "num_attention_heads": 32,
                "num_hidden_layers": 32,
                "vocab_size": 50304,
                "word_embed_proj_dim": 2560,
            },
            "vision_config": {
                "hidden_size": 1408,
                "image_size": 224,
                "intermediate_size": 6144,
                "num_attention_heads": 16,
                "num_hidden_layers": 39,
            },
        },
        "processor_config.json": {
            "num_query_tokens": 32,
            "image_processor": {"size": {"height": 224, "width": 224}},
        },
    },
}


def updated(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`value` with `changes`, section by section."""
    return value | {
        key: updated(value[key], change) if isinstance(change, dict) else change
        for key, change in changes.items()
    }


def write(model: str, folder: Path, sizes: dict[str, dict[str, Any]] | None = None) -> None:
    """Write the model to `folder`: the embedded world's configuration, tokenizer and processor with `sizes`
    (default: SIZES) in them, and random weights. UserError for a model that is not in SIZES."""
    if model not in SIZES:
        raise UserError(f"there is no random {model!r}: choose one of {', '.join(SIZES)}")
    folder.mkdir(parents=True, exist_ok=True)
    describe(model, folder, SIZES[model] if sizes is None else sizes)
    torch.manual_seed(SEED)
    if model == "convnext":
        arguments = read_json(folder / "open_clip_config.json")["model_cfg"]["vision_cfg"]["timm_model_args"]
        save_convnext(arguments["depths"], arguments["dims"], folder / "open_clip_model.safetensors")
    else:
        save_transformer(folder)
        # transformers has written its own words for them: Gemma's GELU is another one there
        describe(model, folder, SIZES[model] if sizes is None else sizes)


def describe(model: str, folder: Path, sizes: dict[str, dict[str, Any]]) -> None:
    """All but the weights."""
    for path in sorted((ZOO / model).iterdir()):
        if path.name in sizes:
            write_json(folder / path.name, updated(read_json(path), sizes[path.name]))
        elif path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)


def save_convnext(depths: list[int], dims: list[int], path: Path) -> None:
    """The trunk under open_clip's names, float32."""
    tower = ConvNextTower(tuple(depths), tuple(dims))
    tensors = {
        f"visual.trunk.{name.removeprefix('vision_')}": tensor for name, tensor in tower.state_dict().items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert convnext_sizes(shapes, "visual.trunk.stages.") == (tuple(depths), tuple(dims))
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def save_transformer(folder: Path) -> None:
    """Random weights of the model that config.json describes, made on a GPU where there is one.

    Matrices are normal with variance 1 / fan-in, so that activations keep their size through any number of
    layers; the rest is as transformers initialises it. In word embeddings, the rows of control tokens and
    those beyond the tokenizer are a tenth as long: such a token is never the likeliest one, so the model says
    words that there are.
    """
    import transformers
    from tokenizers import Tokenizer

    config = transformers.AutoConfig.from_pretrained(folder)
    (architecture,) = config.architectures
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_default_dtype()
    torch.set_default_dtype(config.dtype)
    try:
        with torch.device(device):
            model = getattr(transformers, architecture)(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (parameter.numel() / parameter.shape[0]) ** -0.5)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        control = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        if model.can_generate():
            words = getattr(model, "language_model", model).get_input_embeddings().weight
            words[tokenizer.get_vocab_size() :] *= 0.1  # not zero, where a norm's gradient overflows
            words[control] *= 0.1
    model.cpu().save_pretrained(folder, max_shard_size=SHARD)
    for path in folder.glob("*.safetensors"):  # which are private, whatever the umask says
        path.chmod((folder / "config.json").stat().st_mode)
