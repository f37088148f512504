"""The depthwise kernel against PyTorch's convolution: on a GPU, or in Triton's interpreter where Triton is
installed."""

import os

import pytest
import torch
from torch.nn import functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
kernel = pytest.importorskip("toolkit.mgm.depthwise", reason="Triton is not installed")
if DEVICE == "cpu" and not INTERPRETED:
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)


# sides that are and are not multiples of a program's 8 rows and columns, smaller than the kernel; channels
# below, at, above a block
@pytest.mark.parametrize("shape", [(2, 64, 16, 16), (1, 24, 9, 13), (2, 96, 8, 3), (1, 5, 2, 20)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_equals_the_convolution(shape, layout):
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (
        torch.randn(s, generator=generator).to(DEVICE) for s in (shape, (shape[1], 1, 7, 7), shape[1:2])
    )
    found = kernel.depthwise(features.contiguous(memory_format=layout), weight, bias)
    expected = F.conv2d(features.double(), weight.double(), bias.double(), padding=3, groups=shape[1])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(DEVICE == "cpu", reason="the tower chooses the kernel on a GPU only")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_tower_uses_it(dtype, monkeypatch):
    from toolkit.mgm import convnext

    torch.manual_seed(0)
    tower = convnext.ConvNextTower((1, 1, 2, 1), (16, 32, 64, 128)).to("cuda", dtype)
    images = torch.randn(2, 3, 128, 128, device="cuda", dtype=dtype)
    with torch.no_grad():
        found = tower(images)
        monkeypatch.setattr(convnext, "depthwise", None)
        expected = tower(images)
    for a, b in zip(found, expected, strict=True):
        assert not torch.equal(a, b) or dtype == torch.float32
        torch.testing.assert_close(
            a, b, rtol=0, atol={torch.float32: 1e-3}.get(dtype, 0.05) * b.abs().max().item()
        )
