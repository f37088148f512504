"""The re-associated mining against the textbook order, with gradients, in float64."""

import torch

from toolkit.mgm.convnext import concatenate
from toolkit.mgm.mining import candidates, mine, projector


def attend(low, maps, query, aux, val):
    windows = candidates(concatenate(maps), low.shape[1])
    scores = query(low)[:, :, None] @ aux(windows).transpose(2, 3) / low.shape[-1] ** 0.5
    return (scores.softmax(-1) @ val(windows))[:, :, 0]


def test_outputs_and_gradients_are_those_of_attention_over_projected_candidates():
    torch.manual_seed(0)
    low = torch.randn(2, 9, 12, dtype=torch.float64)
    high = torch.randn(2, 20, 12, 12, dtype=torch.float64)
    modules = [projector(12, 12).double(), projector(20, 12).double(), projector(20, 12).double()]
    for module in modules:  # affine parameters that matter
        torch.nn.init.normal_(module[0].weight)
        torch.nn.init.normal_(module[0].bias)
    results = {}
    for function in (attend, mine):
        for module in modules:
            module.zero_grad()
        output = function(low, [high], *modules)
        output.square().sum().backward()
        results[function] = [output.detach()] + [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for module in modules for p in module.parameters()
        ]
    for ours, expected in zip(results[mine], results[attend], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_windows_are_the_squares_beneath_the_tokens():
    high = torch.arange(36.0).reshape(1, 1, 6, 6)
    windows = candidates(high, 9)
    assert windows.shape == (1, 9, 4, 1)
    assert windows[0, 5, :, 0].tolist() == [16, 17, 22, 23]  # row 1, column 2 of the 3 x 3 grid
