"""LoRA's dropout: how many numbers it drops, which, and what passes back."""

import math

import pytest
import torch
from torch import nn

from toolkit.mgm.checkpoint import build
from toolkit.train.dropout import Dropout, dropped, hashed
from toolkit.train.lora import attach

SHARE = 0.1
SHAPE = (3, 700, 512)


def deviation(share: float, expected: float, count: int) -> float:
    """Standard deviations between `share` of `count` and what was expected."""
    return abs(share - expected) * math.sqrt(count / (expected * (1 - expected)))


def zeros(values: torch.Tensor) -> torch.Tensor:
    return values.detach().flatten() == 0


def test_the_share_and_what_remains():
    torch.manual_seed(0)
    values = torch.randn(SHAPE)
    result = dropped(values, SHARE)
    kept = result != 0
    assert deviation(1 - kept.double().mean().item(), SHARE, values.numel()) < 4
    torch.testing.assert_close(result[kept], values[kept] / (1 - SHARE))
    assert dropped(values.bfloat16(), SHARE).dtype == torch.bfloat16


def test_the_gradient_passes_where_the_value_did():
    torch.manual_seed(0)
    values = torch.ones(SHAPE, requires_grad=True)
    result = dropped(values, SHARE)
    result.sum().backward()
    assert values.grad is not None and torch.equal(values.grad, result)


def test_a_seed_gives_the_same_and_the_next_call_another_mask():
    torch.manual_seed(7)
    first, second = (zeros(dropped(torch.ones(SHAPE), SHARE)) for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(zeros(dropped(torch.ones(SHAPE), SHARE)), first)
    both = (first & second).double().mean().item()
    assert deviation(both, SHARE**2, len(first)) < 4


@pytest.mark.parametrize("distance", [1, 2, 8, 256, 2048, 16384])
def test_numbers_of_one_seed_are_independent(distance):
    torch.manual_seed(1)
    limit = round(SHARE * (1 << 32)) - (1 << 31)
    hits = [hashed(1 << 20, torch.randint(-(1 << 31), 1 << 31, (2,)).int()) < limit for _ in range(8)]
    both = torch.stack([part[distance:] & part[:-distance] for part in hits]).double()
    assert deviation(both.mean().item(), SHARE**2, both.numel()) < 5


def test_the_processor_draws_as_pytorch_and_evaluation_draws_nothing():
    values = torch.randn(SHAPE)
    torch.manual_seed(3)
    own = Dropout(SHARE)(values)
    torch.manual_seed(3)
    assert torch.equal(own, nn.functional.dropout(values, SHARE))
    assert torch.equal(Dropout(SHARE).eval()(values), values)


def test_every_adapted_layer_has_it(parts):
    model = build(parts.llm, parts.clip, parts.convnext, image_size_aux=64)
    attach(model, 8, 16, SHARE, seed=1)
    layers = [name for name, module in model.named_modules() if isinstance(module, Dropout)]
    expected = [name for name, _ in model.named_modules() if name.endswith("_proj.lora_dropout.default")]
    assert layers == expected and len(layers) == 7 * len(model.model.layers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_by_hash_compiled_or_not():
    values = torch.ones(SHAPE, device="cuda")
    layer = Dropout(SHARE)
    torch.manual_seed(3)
    plain = layer(values)
    torch.manual_seed(3)
    assert torch.equal(plain, dropped(values, SHARE))
    compiled = torch.compile(layer, dynamic=True)(values)  # draws its seed in another way
    assert deviation(zeros(compiled).double().mean().item(), SHARE, values.numel()) < 4
