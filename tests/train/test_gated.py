"""The MLP under LoRA as a GPU computes it, beside the same in PyTorch's operations."""

import pytest
import torch
from torch.nn import functional as F

from toolkit.mgm.checkpoint import build
from toolkit.train import gated
from toolkit.train.dropout import dropped
from toolkit.train.lora import attach

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NAMES = ("gate", "up", "gate_low", "up_low", "gate_b", "up_b", "down_a")


def plain(gate, up, gate_low, up_low, gate_b, up_b, down_a, probability, silu):
    """What `_Gated` computes, by operations that PyTorch differentiates."""
    gate, up = gate + gate_low @ gate_b.t(), up + up_low @ up_b.t()
    out = (F.silu(gate) if silu else F.gelu(gate)) * up
    return out, dropped(out, probability) @ down_a.t()


@GPU
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("sizes", [(70, 200, 16, 0.1), (5, 128, 8, 0.0), (64, 130, 40, 0.3)])
def test_values_gradients_and_what_is_dropped(silu, sizes):
    count, width, rank, probability = sizes
    torch.manual_seed(0)
    shapes = [(count, width)] * 2 + [(count, rank)] * 2 + [(width, rank)] * 2 + [(rank, width)]
    inputs = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    weights = torch.randn(count, width, device="cuda"), torch.randn(count, rank, device="cuda")
    results = []
    for function in (gated._Gated.apply, plain):
        torch.manual_seed(5)  # of the dropout
        both = function(*inputs, probability, silu)
        total = sum((part * weight).sum() for part, weight in zip(both, weights, strict=True))
        results.append([*both, *torch.autograd.grad(total, inputs)])
    for name, own, expected in zip(("out", "low", *NAMES), *results, strict=True):
        # factors of the adapters' products are rounded to 11 bits (TF32) in the kernel
        error = (own - expected).norm() / expected.norm()
        assert error < 2e-3, f"{name}: {error:.1e}"


@GPU
@pytest.mark.parametrize("compiled", [False, True])
def test_an_adapted_mlp_trains_as_peft_does(parts, compiled):
    model = build(parts.llm, parts.clip, parts.convnext, image_size_aux=64)
    attach(model, 8, 16, 0.0, seed=1)
    mlp = model.model.layers[0].mlp.cuda().train()
    adapters = {name: p for name, p in mlp.named_parameters() if "lora_" in name}
    for parameter in adapters.values():
        torch.nn.init.normal_(parameter, std=0.05)
    values = torch.randn(3, 20, model.config.hidden_size, device="cuda")
    gradient = torch.randn_like(values)

    def trained(function):
        given = values.clone().requires_grad_()
        result = function(given)
        return [result, *torch.autograd.grad(result, [given, *adapters.values()], gradient)]

    def by_peft(given):
        return mlp.down_proj(mlp.act_fn(mlp.gate_proj(given)) * mlp.up_proj(given))

    own = trained(torch.compile(mlp, dynamic=True) if compiled else mlp)
    for part, expected in zip(own, trained(by_peft), strict=True):
        assert (part - expected).norm() / expected.norm() < 2e-3


def test_the_processor_computes_as_peft_does(parts, monkeypatch):
    monkeypatch.setattr(gated, "gated_kernel", "there")  # as with a CUDA build of PyTorch
    model = build(parts.llm, parts.clip, parts.convnext, image_size_aux=64)
    names = list(model.state_dict())
    values = torch.randn(2, 5, model.config.hidden_size)
    expected = model.model.layers[0].mlp(values)
    attach(model, 8, 16, 0.0, seed=1)  # B is zero
    assert all(isinstance(layer.mlp, gated.GatedMLP) for layer in model.model.layers)
    own = [name.replace(".base_layer", "") for name in model.state_dict() if "lora_" not in name]
    assert own == names
    assert torch.equal(model.train().model.layers[0].mlp(values), expected)
