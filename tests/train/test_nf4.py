"""4-bit weights: the paper's arithmetic, their size, and LoRA training and merging on them."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from toolkit.mgm.checkpoint import TRAINED, build
from toolkit.train.lora import attach, load_adapter, save_adapter
from toolkit.train.merge import adapter_model, fold
from toolkit.train.nf4 import four_bits, quantize
from toolkit.train.stages import train_only

CPU = torch.device("cpu")
OFFSET = 0.9677083  # the paper's appendix E: the outermost quantile that is kept


def code_book() -> torch.Tensor:
    """The 16 values of NF4 from the paper's definition: 8 quantiles above zero, 7 below, and zero."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    above = normal.icdf(torch.linspace(OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([above, torch.zeros(1, dtype=torch.float64), below]).sort().values
    return (values / values.abs().max()).float()


def restored(layer) -> torch.Tensor:
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def linear(outputs: int, inputs: int) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def tiny(parts):
    return build(parts.llm, parts.clip, parts.convnext, seed=1, model_max_length=256)


def trained(parts, steps: int):
    """A quantised model with an adapter, trained on one batch of text, and its losses."""
    model = tiny(parts)
    quantize(model, CPU)
    attach(model, 8, 16, 0.0, seed=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=1e-2)
    ids = torch.randint(3, model.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(2))
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in adapter]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses, gradients


def test_weights_become_the_nearest_of_the_papers_quantiles():
    layer = linear(96, 128)
    blocks = layer.weight.detach().reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    book = code_book()
    nearest = book[(blocks[..., None] / largest[..., None] - book).abs().argmin(-1)]
    result = restored(four_bits(layer, CPU)).reshape(-1, 64)
    # the block's scale comes back from 8 bits: its error is the same for all 64 weights, and small
    scale = (result * nearest).sum(1, keepdim=True) / (nearest * nearest).sum(1, keepdim=True)
    assert ((scale / largest - 1).abs() < 0.02).all() and not torch.equal(scale, largest)
    assert torch.allclose(result, nearest * scale, rtol=0, atol=1e-6 * largest.max())


def test_rounding_error_is_that_of_nf4():
    layer = linear(512, 1024)
    weight = layer.weight.detach()
    error = (restored(four_bits(layer, CPU)) - weight).reshape(-1, 64)
    largest = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    widest = code_book().diff().max()
    assert (error.abs() <= (widest / 2 + 0.02) * largest).all()
    uniform = torch.round(weight.reshape(-1, 64) / largest * 7) / 7 * largest - weight.reshape(-1, 64)
    # equally likely values beat equally spaced ones
    assert error.square().mean() < 0.8 * uniform.square().mean()


def test_a_weight_takes_about_four_bits():
    layer = four_bits(linear(2048, 2048), CPU)
    tensors = [value for value in layer.weight.quant_state.as_dict(packed=True).values()] + [
        layer.weight.data
    ]
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2048**2
    assert 4.125 < bits < 4.14


def test_only_the_decoders_linear_layers_change(parts):
    model, full = tiny(parts), tiny(parts)
    quantize(model, CPU)
    changed = [name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(changed) == 7 * model.config.num_hidden_layers and all(
        name.startswith("model.layers.") for name in changed
    )
    full = dict(full.named_parameters())
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in changed:
            assert (
                parameter.dtype == torch.uint8
                and 2 * parameter.numel() == full[name].numel()
                and not parameter.requires_grad
            )
        else:
            assert torch.equal(parameter, full[name])


def test_lora_trains_on_the_frozen_base_and_twice_the_same(parts):
    model, losses, gradients = trained(parts, 12)
    assert losses[-1] < losses[0] - 0.5
    assert len(gradients) == 14 * model.config.num_hidden_layers and all(
        gradient.abs().sum() > 0 for gradient in gradients
    )
    fresh = tiny(parts)
    quantize(fresh, CPU)
    for name, parameter in fresh.named_parameters():
        if parameter.dtype == torch.uint8:
            layer = model.get_submodule(name.removesuffix(".weight"))
            assert torch.equal(layer.base_layer.weight, parameter)
    _, same_losses, same_gradients = trained(parts, 12)
    assert same_losses == losses and all(
        torch.equal(a, b) for a, b in zip(same_gradients, gradients, strict=True)
    )


@pytest.mark.numerics
def test_gradients_are_those_of_the_restored_weights(parts):
    model, _, gradients = trained(parts, 1)
    plain = tiny(parts)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                plain.get_submodule(name.removesuffix(".base_layer")).weight.copy_(restored(module))
    attach(plain, 8, 16, 0.0, seed=1)
    ids = torch.randint(3, model.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(2))
    plain(input_ids=ids, labels=ids).loss.backward()
    wanted = [parameter.grad for name, parameter in plain.named_parameters() if "lora_" in name]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, wanted, strict=True))


@pytest.mark.numerics
def test_the_adapter_is_saved_and_folded_into_the_full_base(parts, tmp_path):
    model, _, _ = trained(parts, 3)
    train_only(model, lambda name: "lora_" in name or name.startswith(TRAINED))
    save_adapter(model, tmp_path, "llm")
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0}
    adapted, merged = adapter_model(tiny(parts), tmp_path, lora), tiny(parts).eval()
    assert len(fold(merged, *load_adapter(tmp_path, merged, lora))) == 7 * merged.config.num_hidden_layers
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        # no dropout
        expected, result, beside = (each(input_ids=ids).logits for each in (adapted, merged, model))
        untrained = tiny(parts).eval()(input_ids=ids).logits
    assert torch.allclose(result, expected, atol=1e-4)
    # the trained model has its rounding errors beside it; they are smaller than what was learned
    assert 1e-3 < (beside - result).norm() < (untrained - result).norm()
