"""Models and samples of given sizes without any file: random weights made on the device, random pixels,
random tokens."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.mgm.checkpoint import empty, fill
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.language import Gemma, Llama
from toolkit.mgm.layout import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.dataset import Sample

SEED = 1024
# the vision half of openai/clip-vit-large-patch14-336, laion/CLIP-convnext_large_d_320
TOWERS: dict[str, Any] = {
    "clip": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "depths": (3, 3, 27, 3),
    "dims": (192, 384, 768, 1536),
}
TINY_TOWERS: dict[str, Any] = {
    "clip": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 84,
        "patch_size": 21,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "depths": (1, 1, 2, 1),
    "dims": (16, 32, 64, 128),
    "image_size_aux": 128,
}
LLAMA: dict[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-5}
VICUNA = LLAMA | {"vocab_size": 32000, "max_position_embeddings": 4096}
VICUNA |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    # google/gemma-2b-it
    "2B": MGMConfig(
        language=Gemma(
            vocab_size=256000,
            hidden_size=2048,
            intermediate_size=16384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
            max_position_embeddings=8192,
            hidden_act="gelu",
            rms_norm_eps=1e-6,
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
        ),
        **TOWERS,
    ),
    # lmsys/vicuna-7b-v1.5
    "7B": MGMConfig(
        language=Llama(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            **VICUNA,
        ),
        **TOWERS,
    ),
    # meta-llama/Meta-Llama-3-8B-Instruct
    "8B": MGMConfig(
        language=Llama(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            rope_theta=500000.0,
            bos_token_id=128000,
            eos_token_id=128001,
            **LLAMA,
        ),
        **TOWERS,
    ),
    # lmsys/vicuna-13b-v1.5
    "13B": MGMConfig(
        language=Llama(
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=40,
            **VICUNA,
        ),
        **TOWERS,
    ),
    # the embedded world's models (toolkit/world/zoo)
    "tiny_llama": MGMConfig(
        language=Llama(
            vocab_size=384,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        **TINY_TOWERS,
    ),
    "tiny": MGMConfig(
        language=Gemma(
            vocab_size=384,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            hidden_act="gelu",
            rms_norm_eps=1e-6,
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
        ),
        **TINY_TOWERS,
    ),
}
# the members' HD variants (*_hr_1536 of the official scripts): four crops and the whole image, 2,880 tokens
HD = {"image_size_aux": 1536, "image_grid": 2, "image_global": True, "model_max_length": 4096}
CONFIGS |= {f"{size}-HD": CONFIGS[size].with_(**HD) for size in ("7B", "8B", "13B")}
# Text tokens of a sample, template included, and how many of them, at the end, carry a label. Captions are
# short. The official instruction data are mostly long answers: half of the text is taken as labelled.
TEXT = {"pretrain": (63, 32), "lora": (299, 150), "full": (299, 150)}


class Weights(Mapping[str, Tensor]):
    """Random tensors for every parameter of `model`, made when asked for on `device`.

    Matrices and kernels are normal with variance 1 / fan-in and norms start as the identity, so that
    activations keep their size through any number of layers.
    """

    def __init__(self, model: MGMForCausalLM, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if model.config.tie_word_embeddings:
            self.shapes.pop("lm_head.weight", None)
        self.gemma = isinstance(model.mgm.language, Gemma)
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator(device).manual_seed(SEED)

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if len(shape) > 1:
            deviation = (shape.numel() // shape[0]) ** -0.5
            return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(
                0, deviation, generator=self.generator
            )
        # Gemma's norms multiply by 1 + weight; all others, and layer scales, by the weight itself
        scale = name.endswith(("weight", "gamma")) and (
            not self.gemma or "vision_tower" in name or "vlm_uni" in name
        )
        return torch.full(shape, float(scale), dtype=self.dtype, device=self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def model(size: str, dtype: torch.dtype, device: torch.device) -> MGMForCausalLM:
    """A model of CONFIGS[size] with random weights in `dtype`; nothing of it passes through the host's
    memory."""
    network = empty(CONFIGS[size])
    fill(network, Weights(network, dtype, device), f"the synthetic {size} model", dtype)
    return network.to(device)


def samples(stage: str, count: int, config: MGMConfig, seed: int) -> list[Sample]:
    """`count` samples of one image and TEXT[stage] tokens each; stage is pretrain, lora or full."""
    random = np.random.default_rng(seed)
    text, labelled = TEXT[stage]
    side = config.image_size_aux
    generated = []
    for _ in range(count):
        tokens = random.integers(3, config.language.vocab_size, text).tolist()
        ids = [config.language.bos_token_id, IMAGE_TOKEN_INDEX, *tokens[1:]]
        labels = [IGNORE_INDEX] * (len(ids) - labelled) + ids[-labelled:]
        generated.append(Sample(ids, labels, random.integers(0, 256, (side, side, 3), dtype=np.uint8)))
    return generated
