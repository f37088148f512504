"""The re-associated mining against the textbook order, and the GPU kernels against both, with gradients.

The kernels' tests need CUDA, or TRITON_INTERPRET=1 and Triton, which then runs the kernels on the CPU.
"""

import os

import pytest
import torch
from torch.nn import functional as F

from toolkit.mgm import mining
from toolkit.mgm.convnext import concatenate
from toolkit.mgm.mining import candidates, mine, projector

kernel = mining.mining_kernel
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_triton = pytest.mark.skipif(
    kernel is None or (DEVICE == "cpu" and not INTERPRETED),
    reason="the kernels need Triton and CUDA or TRITON_INTERPRET=1",
)


def modules_of(width, channels, dtype=torch.float64, device="cpu"):
    modules = [projector(width, width), projector(channels, width), projector(channels, width)]
    for module in modules:  # affine parameters that matter
        torch.nn.init.normal_(module[0].weight)
        torch.nn.init.normal_(module[0].bias)
    return [module.to(device, dtype) for module in modules]


def official(low, maps, query, aux, val):
    windows = candidates(concatenate(maps), low.shape[1])
    scores = query(low)[:, :, None] @ aux(windows).transpose(2, 3) / low.shape[-1] ** 0.5
    return (scores.softmax(-1) @ val(windows))[:, :, 0]


def run(function, low, maps, modules):
    """Output and gradients of all parameters; those that take no part in a function count as zero."""
    for module in modules:
        module.zero_grad()
    output = function(low, maps, *modules)
    output.square().sum().backward()
    return [output.detach()] + [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for m in modules for p in m.parameters()
    ]


@pytest.mark.numerics
@pytest.mark.parametrize("shapes", [[(20, 12)], [(7, 12), (9, 6), (4, 3)]])
def test_outputs_and_gradients_are_those_of_attention_over_projected_candidates(shapes):
    torch.manual_seed(0)
    low = torch.randn(2, 9, 12, dtype=torch.float64)
    maps = [torch.randn(2, channels, side, side, dtype=torch.float64) for channels, side in shapes]
    modules = modules_of(12, 20)
    for ours, expected in zip(run(mine, low, maps, modules), run(official, low, maps, modules), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", [2, 3])
def test_crops_mine_in_the_whole_image(grid):
    """What the tokens of each crop mine in its part of the maps, they mine in the whole ones."""
    low = torch.randn(2 * grid**2, 4, 8, dtype=torch.float64)
    maps = [torch.randn(2, 6, 4 * grid, 4 * grid).double(), torch.randn(2, 5, 2 * grid, 2 * grid).double()]
    modules = modules_of(8, 11)
    whole = mining.apart(mine(mining.together(low, grid), maps, *modules), grid)
    high = concatenate(maps)
    for crop, tokens in enumerate(low.unflatten(0, (2, -1)).unbind(1)):
        row, column = (4 * number for number in divmod(crop, grid))
        cut = high[:, :, row : row + 4, column : column + 4]
        assert torch.allclose(whole[:, 4 * crop : 4 * crop + 4], mine(tokens, [cut], *modules), atol=1e-12)


def test_a_reduced_map_is_the_concatenated_one_resized():
    maps = [torch.randn(1, mining.CHANNELS + 3, 16, 16), torch.randn(1, 5, 8, 8), torch.randn(1, 9, 4, 4)]
    expected = F.interpolate(concatenate(maps), scale_factor=0.5, mode="bilinear", align_corners=False)
    assert torch.allclose(mining.reduced(maps, 2), expected, atol=1e-6)


def test_windows_are_the_squares_beneath_the_tokens():
    high = torch.arange(36.0).reshape(1, 1, 6, 6)
    windows = candidates(high, 9)
    assert windows.shape == (1, 9, 4, 1)
    assert windows[0, 5, :, 0].tolist() == [16, 17, 22, 23]  # row 1, column 2 of the 3 x 3 grid


def exact(maps, key, eps):
    """What both implementations approximate, in float64 throughout."""
    maps = [
        F.interpolate(m.double(), size=maps[0].shape[-2:], mode="bilinear", align_corners=False) for m in maps
    ]
    windows = candidates(torch.cat(maps, dim=1), key.shape[1])
    normalised = F.layer_norm(windows, windows.shape[-1:], eps=eps)
    attention = torch.einsum("btc,btjc->btj", key.double(), normalised).softmax(dim=-1)
    return torch.einsum("btj,btjc->btc", attention, normalised)


def sample(shapes, tokens, dtype, batch=2):
    """Maps (channels last, means that are not zero), a key and the gradient of the context."""
    torch.manual_seed(1)
    maps = [(torch.randn(batch, c, side, side, device=DEVICE) + 0.5).to(dtype) for c, side in shapes]
    maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    key, gradient = torch.randn(2, batch, tokens, sum(c for c, _ in shapes), device=DEVICE, dtype=real)
    return maps, key.mul(0.5).requires_grad_(), gradient


def attended(maps, key, gradient, function=None):
    key.grad = None
    output = (function or kernel.context)(maps, key, 1e-5, key.dtype)
    output.backward(gradient)
    return output.detach(), key.grad


# 9 tokens: corners, edges and an interior; channels that fill no tile; windows of 8, 6 and 3 candidates, the
# last cutting native pixels
CASES = {
    "four stages": ([(8, 24), (12, 12), (20, 6), (33, 3)], 9, torch.float64),
    "one map": ([(20, 18)], 9, torch.float64),
    "window across native pixels": ([(5, 12), (7, 6), (11, 3)], 16, torch.float64),
    "float32": ([(5, 16), (70, 2)], 4, torch.float32),
    "bfloat16": ([(5, 8), (6, 4)], 4, torch.bfloat16),
    "float16": ([(6, 8), (5, 4)], 4, torch.float16),
}


@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_kernel_output_and_gradient_are_the_exact_ones(case):
    maps, key, gradient = sample(*CASES[case])
    assert kernel.supports(maps, key.shape[1])
    # 3.9e-12 seen on an H100, sums of thousands of terms
    tolerance = 1e-11 if key.dtype == torch.float64 else 2e-5
    output, derivative = attended(maps, key, gradient)
    reference = key.detach().double().requires_grad_()
    expected = exact(maps, reference, 1e-5)
    expected.backward(gradient.double())
    torch.testing.assert_close(output.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(derivative.double(), reference.grad, rtol=tolerance, atol=tolerance)


@needs_triton
def test_kernel_gives_the_same_bits_twice_and_for_either_memory_layout():
    maps, key, gradient = sample([(5, 16), (7, 8), (9, 4)], 4, torch.float32)
    first = attended(maps, key, gradient)
    for again in (attended(maps, key, gradient), attended([m.contiguous() for m in maps], key, gradient)):
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@needs_triton
def test_kernel_compiles_without_a_graph_break():
    maps, key, gradient = sample([(5, 8), (7, 4)], 4, torch.float32)
    compiled = torch.compile(kernel.context, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(
        attended(maps, key, gradient, compiled), attended(maps, key, gradient), strict=True
    ):
        assert torch.equal(ours, expected)


@needs_triton
def test_kernel_says_that_it_has_no_gradient_for_the_maps():
    maps, key, _ = sample([(5, 8)], 4, torch.float32)
    with pytest.raises(ValueError, match="freeze the tower"):
        kernel.context([maps[0].requires_grad_()], key, 1e-5, key.dtype)


@needs_triton
def test_kernel_leaves_what_it_cannot_read_to_the_reference():
    def maps(*sides):
        return [torch.zeros(1, 4, side, side) for side in sides]

    assert kernel.supports(maps(24, 12, 8), 9)
    assert not kernel.supports(maps(24, 5), 9)  # not a whole factor
    assert not kernel.supports(maps(24), 25)  # windows of 4.8
    assert not kernel.supports(maps(24), 8)  # no square of tokens
    assert not kernel.supports(maps(64), 4)  # windows of 32
    assert not kernel.supports([torch.zeros(1, 4, 24, 12)], 9)


@pytest.mark.skipif(kernel is None or DEVICE == "cpu", reason="mining chooses the kernels on CUDA only")
@pytest.mark.parametrize("autocast", [False, True])
def test_mining_on_the_gpu_is_that_of_the_reference(autocast, monkeypatch):
    maps, key, _ = sample(
        [(192, 48), (384, 24), (768, 12), (1536, 6)], 36, torch.bfloat16 if autocast else torch.float32
    )
    modules = modules_of(64, key.shape[-1], torch.float32, DEVICE)
    low = torch.randn(2, 36, 64, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        ours = run(mine, low, maps, modules)
        monkeypatch.setattr(kernel, "supports", lambda maps, tokens: False)
        expected = run(mine, low, maps, modules)
    for a, b in zip(ours, expected, strict=True):
        assert (a.float() - b.float()).norm() <= (3e-2 if autocast else 1e-4) * b.float().norm()
