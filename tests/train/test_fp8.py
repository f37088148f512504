"""8-bit products: rounding, their gradient, what is converted, and both trainings on them."""

import ast
import itertools
import json
import weakref

import pytest
import torch
from torch import nn

from tests.train.tiny_training import SHORT, job
from toolkit.__main__ import main
from toolkit.errors import UserError
from toolkit.mgm.checkpoint import build
from toolkit.train import fp8, stages
from toolkit.train.lora import attach

GPU = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < fp8.CAPABILITY,
    reason="needs a GPU that multiplies in 8 bits",
)


def e4m3() -> torch.Tensor:
    """The finite numbers of the format, from its definition: sign, 4 bits of exponent with bias 7, 3 of
    mantissa; of the largest exponent the last mantissa is no number."""
    pairs = itertools.product(range(16), range(8))
    values = [2.0**-9 * m if e == 0 else 2.0 ** (e - 7) * (1 + m / 8) for e, m in pairs if (e, m) != (15, 7)]
    return torch.tensor(sorted({-value for value in values} | set(values)))


def linear(outputs: int, inputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False)


def restored(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return values.double() * scale.double()


def tiny(parts):
    return build(parts.llm, parts.clip, parts.convnext, seed=1, model_max_length=256)


def test_values_become_the_nearest_of_the_format():
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3
    result, scale = fp8.rounded(values)
    assert torch.equal(scale[:, 0], values.abs().amax(1) / 448)
    nearest = (values / scale)[..., None].sub(e4m3()).abs().amin(-1)
    assert torch.equal((values / scale - result.float()).abs(), nearest)
    assert torch.equal(result.float().abs().amax(1), torch.full((6,), 448.0))


def test_rows_of_zeros_and_of_great_and_small_numbers_stay_finite():
    values = torch.tensor([[0.0] * 16, [1e30] * 16, [1e-30] * 16])
    result = restored(*fp8.rounded(values))
    assert result.isfinite().all() and torch.equal(result[0], torch.zeros(16, dtype=torch.float64))
    assert torch.allclose(result[1], values[1].double(), rtol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_not_finite_stays_so(value, device):
    values = torch.ones(2, 64, device=device)
    values[1, 5] = float(value)
    result = fp8.product(values, *fp8.rounded(torch.ones(16, 64, device=device)))
    assert result[0].isfinite().all() and not result[1].isfinite().any()


@pytest.mark.numerics
def test_a_product_and_its_gradient_are_those_of_the_rounded_factors(monkeypatch):
    monkeypatch.delattr(torch, "_scaled_mm")  # on the CPU, builds of PyTorch differ in it
    layer = linear(48, 64)
    small = fp8.Linear(layer)
    values, gradient = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 48)
    result = small(values)
    result.backward(gradient)
    rows, weight = restored(*fp8.rounded(values.detach()[0])), restored(small.weight, small.scale)
    assert torch.allclose(result[0].double(), rows @ weight.t(), rtol=1e-5, atol=1e-5)
    rows = restored(*fp8.rounded(gradient[1]))
    weight = restored(small.transposed, small.transposed_scale)
    assert torch.allclose(values.grad[1].double(), rows @ weight.t(), rtol=1e-5, atol=1e-5)
    exact = layer(values)
    assert 0.02 < (result - exact).norm() / exact.norm() < 0.05
    assert 0.02 < (values.grad - gradient @ layer.weight).norm() / values.grad.norm() < 0.05


def test_the_decoders_wide_layers_change_and_nothing_else(parts):
    model, full = tiny(parts), dict(tiny(parts).named_parameters())
    attach(model, 8, 16, 0.0, seed=1)
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    fp8.convert(model)
    changed = [name for name, module in model.named_modules() if isinstance(module, fp8.Linear)]
    # a block's queries, output, gate, up and down; its one pair of keys and values is narrow
    assert len(changed) == 5 * model.config.num_hidden_layers
    assert not any("k_proj" in name or "v_proj" in name for name in changed)
    kept = dict(model.named_parameters())
    assert adapters < kept.keys()
    for name, parameter in kept.items():
        if "lora_" not in name:
            assert torch.equal(parameter, full[name.replace(".base_layer", "")])
    # 16 bits a weight
    layer = model.get_submodule(changed[0])
    weights = full[changed[0].removesuffix(".base_layer") + ".weight"].numel()
    tables = (layer.weight, layer.transposed)
    assert sum(table.numel() * table.element_size() for table in tables) == 2 * weights


def test_the_full_layers_go_one_by_one(parts, monkeypatch):
    model, kept, full = tiny(parts), [], []
    attach(model, 8, 16, 0.0, seed=1)

    class Watched(fp8.Linear):
        def __init__(self, layer):
            kept.append(sum(weight() is not None for weight in full))
            full.append(weakref.ref(layer.weight))
            super().__init__(layer)

    monkeypatch.setattr(fp8, "Linear", Watched)
    fp8.convert(model)
    assert kept == [0] * 5 * model.config.num_hidden_layers


def test_sizes_that_cannot_be_multiplied_are_a_sentence(parts):
    model = tiny(parts)
    model.model.layers[1].mlp.up_proj = linear(40, 128)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj is 128 x 40: 8 bits need multiples of 16"):
        fp8.convert(model)


@pytest.mark.numerics
def test_each_stage_trains_on_it_and_close_to_the_full_base(parts, conversations, tmp_path):
    losses: dict[str, dict[str, list[float]]] = {"pretrain": {}, "finetune": {}}
    for base in ("full", "fp8"):
        for stage in losses:
            task = job(parts, conversations, tmp_path / base / stage, scale=SHORT)
            if stage == "pretrain":
                stages.pretrain(task, base)
            else:  # both from one projector
                projector = tmp_path / "full/pretrain/mm_projector.bin"
                stages.finetune(task, projector, stages.Lora(8, 16, 0.1, base))
            lines = (tmp_path / base / stage / f"{stage}.log").read_text().splitlines()
            losses[stage][base] = [line["loss"] for line in map(ast.literal_eval, lines) if "loss" in line]
        record = json.loads((tmp_path / base / "pretrain/run.json").read_text())
        assert record["settings"]["base"] == base
    for of in losses.values():
        assert of["full"] != of["fp8"]
        assert of["fp8"] == pytest.approx(of["full"], rel=5e-3)


@pytest.mark.parametrize("base", ["nf4", "fp8"])
def test_a_full_finetuning_has_no_frozen_base(base, capsys):
    places = ["samples", "images", "projector", "llm", "clip", "convnext", "output"]
    command = ["train", "finetune", *(part for place in places for part in (f"--{place}", "nowhere"))]
    command += ["--scale", "tiny", "--seed", "1", "--division", "closed", "--base", base]
    assert main(command) == 1
    assert f"--base {base} is for LoRA (--division open)" in capsys.readouterr().err


@GPU
@pytest.mark.parametrize(("rows", "width"), [(3, 64), (1000, 2048), (70, 11008), (99, 16384)])
def test_the_kernel_rounds_as_torch_does(rows, width, monkeypatch):
    values = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    values[1] = 0
    result, scale = fp8.rounded(values)
    monkeypatch.setattr(fp8, "fp8_kernel", None)
    expected, its_scale = fp8.rounded(values)
    assert torch.equal(scale, its_scale)
    # a quotient that lies between two numbers may fall to either
    assert (result.float() != expected.float()).float().mean() < 1e-5


@GPU
def test_compiled_products_on_a_gpu_are_as_exact():
    layer = linear(1024, 2048).to("cuda", torch.bfloat16)
    small = fp8.Linear(layer)
    values = torch.randn(3, 70, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(3, 70, 1024, device="cuda", dtype=torch.bfloat16)
    for run in (small, torch.compile(small, dynamic=True)):
        values.grad = None
        result = run(values)
        result.backward(gradient)
        exact, its_gradient = layer(values), gradient @ layer.weight
        assert 0.02 < (result - exact).norm() / exact.norm() < 0.05
        assert 0.02 < (values.grad - its_gradient).norm() / its_gradient.norm() < 0.05
