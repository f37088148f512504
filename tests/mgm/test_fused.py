"""The kernels of decoder and towers against the modules that they replace: on a GPU, or in Triton's
interpreter where Triton is installed."""

import os
from functools import partial

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import GemmaConfig, LlamaConfig
from transformers.activations import QuickGELUActivation
from transformers.models.gemma.modeling_gemma import (
    GemmaAttention,
    GemmaMLP,
    GemmaRMSNorm,
    GemmaRotaryEmbedding,
)
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from toolkit.mgm.convnext import Block, LayerNorm2d
from toolkit.mgm.slots import Grown

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
fused = pytest.importorskip("toolkit.mgm.fused", reason="Triton is not installed")
if DEVICE == "cpu" and not INTERPRETED:
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)
# of the largest value: rows are summed in another order, so that some values round to their neighbour
# Triton's interpreter rounds to bfloat16 towards zero
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2 if INTERPRETED else 8e-3}


def close(output, expected):
    bound = TOLERANCE[expected.dtype] * expected.abs().max().item()
    torch.testing.assert_close(output.float(), expected.float(), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", [GemmaRMSNorm, LlamaRMSNorm])
@pytest.mark.parametrize("shape", [(3, 5, 96), (2, 1, 2048)])
def test_the_norm_is_transformers(kind, dtype, shape):
    torch.manual_seed(0)
    norm = kind(shape[-1], eps=1e-6).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight, 0.5, 0.5)
    hidden = torch.randn(shape, device=DEVICE).to(dtype) * 3
    with torch.no_grad():
        close(fused.rms_norm(norm, 1e-6, hidden), norm(hidden))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("kind", "settings", "activation"), [(GemmaMLP, GemmaConfig, "gelu"), (LlamaMLP, LlamaConfig, "silu")]
)
def test_the_gated_mlp_is_transformers(kind, settings, activation, dtype):
    torch.manual_seed(0)
    config = settings(hidden_size=48, intermediate_size=88, num_attention_heads=4)
    config.hidden_act = activation
    mlp, hidden = kind(config).to(DEVICE, dtype), torch.randn(3, 7, 48, device=DEVICE).to(dtype) * 4
    with torch.no_grad():
        close(fused.gated_mlp(mlp, activation == "silu", hidden), mlp(hidden))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 5, 96), (37, 192), (2, 1536)])
def test_the_layer_norm_is_torchs(shape, dtype):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(shape[-1], eps=1e-6).to(DEVICE, dtype)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.5)
    hidden = (torch.randn(shape, device=DEVICE) * 3 + 1).to(dtype)
    with torch.no_grad():
        close(fused.layer_norm(norm, hidden), norm(hidden))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_clips_activation_is_transformers(dtype):
    values = (torch.randn(3, 7, 50, device=DEVICE) * 4).to(dtype)
    close(fused.quick_gelu(QuickGELUActivation(), values.clone()), QuickGELUActivation()(values))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_convnexts_modules_are_the_towers(dtype):
    torch.manual_seed(0)
    block, norm = Block(24).to(DEVICE, dtype), LayerNorm2d(24).to(DEVICE, dtype)
    torch.nn.init.normal_(block.gamma)
    maps = torch.randn(2, 24, 9, 10, device=DEVICE).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        close(fused.convnext_block(block, maps), block(maps))
        close(fused.layer_norm_2d(norm, maps), norm(maps))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "width"), [((4, 1), 16), ((6, 2), 24), ((3, 3), 16)])
def test_the_attention_is_transformers(heads, width, masked, length, dtype):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": width}
    config = GemmaConfig(hidden_size=48, intermediate_size=8, attn_implementation="sdpa", **sizes)
    layer = GemmaAttention(config, 0).to(DEVICE, dtype)
    hidden = torch.randn(2, length, 48, device=DEVICE).to(dtype)
    before = 5 if masked or length == 1 else 0
    rope = GemmaRotaryEmbedding(config).to(DEVICE)
    positions = torch.arange(before, before + length, device=DEVICE).expand(2, -1)
    positions = positions + torch.tensor([[0], [3]], device=DEVICE) if masked else positions[:1]
    mask = torch.rand(2, 1, length, before + length, device=DEVICE) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True
    past = [torch.randn(2, heads[1], before, width, device=DEVICE).to(dtype) for _ in range(2)]

    def out(function):
        memory = Grown()
        memory.layers[0] = past[0], past[1]
        with torch.no_grad():
            return function(
                hidden_states=hidden,
                position_embeddings=rope(hidden, positions),
                attention_mask=mask,
                past_key_values=memory,
            )[0]

    close(out(partial(fused.attention, layer)), out(layer))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(4, 1), (6, 2), (3, 3)])
def test_texts_behind_what_is_known_see_it_and_their_own_beginning(heads, dtype):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 16}
    config = GemmaConfig(hidden_size=48, intermediate_size=8, attn_implementation="sdpa", **sizes)
    layer = GemmaAttention(config, 0).to(DEVICE, dtype)
    hidden = torch.randn(2, 11, 48, device=DEVICE).to(dtype)
    rope = GemmaRotaryEmbedding(config).to(DEVICE)(hidden, torch.arange(11, device=DEVICE)[None])
    known, text = ((hidden[:, part], tuple(a[:, part] for a in rope)) for part in (slice(7), slice(7, None)))
    memory = Grown()
    with torch.no_grad():
        whole = layer(hidden, rope, None, Grown())[0]  # transformers', causal
        fused.attention(layer, *known, None, memory)
        behind = fused.attention(layer, *text, causal_lower_right(4, 11), memory)[0]
    close(behind, whole[:, 7:])


@pytest.mark.skipif(DEVICE == "cpu", reason="answers are fused on a GPU only")
@pytest.mark.parametrize("size", ["tiny", "tiny_llama"])
def test_answering_uses_them_and_gives_the_same_logits(size, monkeypatch):
    from toolkit.bench import synthetic
    from toolkit.mgm import generate

    model = synthetic.model(size, torch.float32, torch.device("cuda"))
    embeds = torch.randn(2, 9, model.config.hidden_size, device="cuda")
    positions = torch.arange(9, device="cuda")[None]

    @torch.inference_mode()
    def logits():
        greedy = generate.Greedy(model, 2)
        return greedy.logits(greedy.pass_through(embeds, positions, None, generate.Grown())[:, -1])

    with monkeypatch.context() as without:
        without.setattr(generate, "fuse", None)
        expected = logits()
    torch.testing.assert_close(logits(), expected, rtol=1e-4, atol=1e-4)
    assert all("forward" in vars(layer.mlp) for layer in model.model.layers)
