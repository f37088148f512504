"""Float32 values and moments of bf16 weights: cut into pieces, kept in the host's memory, given back. That
they train as AdamW does is in test_zero.py."""

import pytest
import torch
from torch.nn import Parameter

from toolkit.train import masters
from toolkit.train.masters import MasterAdamW

GPU = torch.device("cuda")
CPU = torch.device("cpu")


def trained(device: torch.device, *, offload: bool, steps: int = 3) -> MasterAdamW:
    """After some steps on random gradients of a matrix, a bias and a matrix without any."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"matrix": (40, 50), "bias": (70,), "without": (9, 9)}
    parameters = {
        name: Parameter(torch.randn(shape, generator=generator).to(device, torch.bfloat16))
        for name, shape in shapes.items()
    }
    optimizer = MasterAdamW(parameters, 0.1, 1.0, device, offload=offload)
    for _ in range(steps):
        for name in ("matrix", "bias"):
            slope = torch.randn(shapes[name], generator=generator).to(device, torch.bfloat16)
            optimizer.backward((parameters[name] * slope).sum())
        optimizer.step(1e-2)
    return optimizer


def state(optimizer: MasterAdamW) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in optimizer.state().items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_pieces_do_not_change_a_step(monkeypatch):
    whole = state(trained(CPU, offload=False))
    monkeypatch.setattr(masters, "PIECE", 64)
    assert same(state(trained(CPU, offload=False)), whole)
    assert whole["step.matrix"] == 3 and whole["exp_avg.matrix"].any() and not whole["exp_avg.without"].any()


def test_what_has_no_gradient_decays_all_the_same():
    before, after = (state(trained(CPU, offload=False, steps=steps)) for steps in (0, 1))
    torch.testing.assert_close(after["value.without"], before["value.without"] * (1 - 1e-2 * 0.1))


def test_closed_it_gives_the_float32_values_back_and_adds_nothing_more():
    optimizer = trained(CPU, offload=False)
    values = {name: optimizer.state()[f"value.{name}"].clone() for name in optimizer.parameters}
    rounded = {name: parameter.detach().clone() for name, parameter in optimizer.parameters.items()}
    optimizer.close()
    for name, parameter in optimizer.parameters.items():
        assert torch.equal(parameter, values[name]) and torch.equal(parameter.bfloat16(), rounded[name])
    optimizer.parameters["bias"].sum().backward()
    assert optimizer.parameters["bias"].grad is not None and not optimizer.sums.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_hosts_memory_holds_the_same_bits(monkeypatch):
    monkeypatch.setattr(masters, "PIECE", 64)  # all buffers are used several times
    offloaded = trained(GPU, offload=True)
    assert offloaded.kept.is_pinned() and same(state(offloaded), state(trained(GPU, offload=False)))
    again = trained(GPU, offload=True, steps=0)
    again.load(state(offloaded))
    assert same(state(again), state(offloaded))
    for name, parameter in again.parameters.items():
        assert torch.equal(parameter, offloaded.parameters[name])
