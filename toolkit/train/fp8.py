"""The decoder's frozen linear layers in 8 bits, so that its products run at twice the rate of bf16 on GPUs
that have them (compute capability 8.9: Ada, Hopper, later ones).

Weights become e4m3 (arXiv 2209.05433) once, with a scale for each output. What is multiplied by them is
rounded as it comes, with a scale for each token, and so is the gradient that passes through: the root mean
square of a product's error is 3.7 % of the product's, for weights and inputs of a normal distribution. Sums
are in float32. Hardware reads both factors along the dimension that is summed over, so the gradient's product
has a table of its own: 16 bits a weight in all, as in bf16. Whatever is trained, LoRA's adapter and the
projector, keeps its type and its products.

As with 4 bits (`toolkit/train/nf4.py`), the adapter is folded into the base as it was, and the merged model
is the one to be evaluated.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.lora import TARGETS

try:
    from toolkit.train import fp8_kernel
except ImportError:  # Triton comes with the CUDA builds of PyTorch only
    fp8_kernel = None  # type: ignore[assignment]

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
LEAST = 1e-12  # a row's largest magnitude is taken for this where it is less, as in a row of zeros
CAPABILITY = (8, 9)  # of a GPU that multiplies in 8 bits
MULTIPLE = 16  # of a layer's inputs and outputs, for the product


def rounded(values: Tensor) -> tuple[Tensor, Tensor]:
    """(values [n, d] in e4m3, scales [n, 1] in float32): of each row the largest magnitude becomes the
    format's."""
    if fp8_kernel is not None and values.is_cuda:
        return fp8_kernel.rounded(values, LEAST)
    exact = values.float()
    scale = exact.abs().amax(-1, keepdim=True).clamp(min=LEAST) / LARGEST
    return (exact / scale).to(FORMAT).contiguous(), scale


def product(values: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """[..., out] in the type of `values` [..., d]: these, rounded, times `weight` [out, d] in e4m3 with its
    `scale` [out, 1]."""
    rows, row_scale = rounded(values.reshape(-1, values.shape[-1]))
    if values.is_cuda:  # with fast accumulation the errors are the same to the third digit
        result = torch._scaled_mm(
            rows, weight.t(), row_scale, scale.t(), out_dtype=values.dtype, use_fast_accum=True
        )
    else:  # where `_scaled_mm` takes one scale for all, by the build of PyTorch
        result = (rows.float() @ weight.float().t() * row_scale * scale.t()).to(values.dtype)
    return result.reshape(*values.shape[:-1], len(weight))


class _Product(torch.autograd.Function):
    """`product` by one table, and its gradient by the transposed one."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor, its_scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(transposed, its_scale)
        return product(values, weight, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        return product(gradient, *ctx.saved_tensors), None, None, None, None


class Linear(nn.Module):
    """The frozen linear layer `layer` in 8 bits, without a bias."""

    weight: Tensor
    scale: Tensor
    transposed: Tensor
    transposed_scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        tables = (*rounded(weight), *rounded(weight.t()))
        names = ("weight", "scale", "transposed", "transposed_scale")
        for name, table in zip(names, tables, strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """values [..., in] to [..., out]."""
        return _Product.apply(values, self.weight, self.scale, self.transposed, self.transposed_scale)


def convert(model: MGMForCausalLM) -> None:
    """Put the decoder's linear layers into 8 bits, in place and on their device, those under a LoRA too;
    UserError for a GPU or sizes that cannot.

    The full layers go one by one. Keys and values that query heads share stay as they are: such a layer is so
    narrow that rounding takes longer than the product saves.
    """
    device = model.lm_head.weight.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{name} does not multiply in 8 bits (compute capability 8.9): leave base at full")
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        layer, plain = model.get_submodule(name), name.removesuffix(".base_layer")
        if not re.fullmatch(TARGETS, plain):
            continue
        assert isinstance(layer, nn.Linear)
        if plain.endswith(("k_proj", "v_proj")) and layer.out_features < layer.in_features:
            continue
        assert layer.bias is None
        if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
            sizes = f"{layer.in_features} x {layer.out_features}"
            raise UserError(f"{plain} is {sizes}: 8 bits need multiples of {MULTIPLE}, leave base at full")
        model.set_submodule(name, Linear(layer))
