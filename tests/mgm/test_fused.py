"""The kernels of a decoder layer against transformers' modules: on a GPU, or in Triton's interpreter where
Triton is installed."""

import os

import pytest
import torch
from transformers import GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
fused = pytest.importorskip("toolkit.mgm.fused", reason="Triton is not installed")
if DEVICE == "cpu" and not INTERPRETED:
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)
# of the largest value: rows are summed in another order, so that some values round to their neighbour
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


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
