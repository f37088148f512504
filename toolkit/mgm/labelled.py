"""Rows with labels before the decoder, and what is computed at those labels without training: the loss of a
caption, for one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.mgm.layout import Layout, TokenRow, stack, to_device
from toolkit.mgm.model import Features, MGMForCausalLM
from toolkit.mgm.processor import tensors


@dataclass(frozen=True)
class Labelled:
    """What the decoder computes in one forward pass.

    embeds [B, L, d] and their layout, the rows in order; flat `positions` [n] in [B, L] whose next token has
    a label, and those `targets` [n], row by row.
    """

    embeds: Tensor
    layout: Layout
    positions: Tensor
    targets: Tensor


def labelled(
    model: MGMForCausalLM,
    rows: list[TokenRow],
    pixels: Tensor | None,
    device: torch.device,
    *,
    tokens: Tensor | None = None,
) -> Labelled:
    """The decoder's input of one pass.

    pixels: of the rows' images, uint8 [images, S, S, 3] on `device`; tokens [images, T, d]: of the images,
    where they are known.
    """
    layout = stack(rows, model.tokens_per_image, model.pad_id, "right")
    positions, targets = (to_device(part, device) for part in layout.predictions())
    layout = layout.to(device)
    if pixels is not None and tokens is None:
        tokens = model.tokens_of(seen(model, pixels))
    return Labelled(model.embed(layout, tokens), layout, positions, targets)


def seen(model: MGMForCausalLM, pixels: Tensor, shrinkage: int = 1) -> Features:
    """What the towers make of images, uint8 [B, S, S, 3]; shrinkage: what the side of those that the
    high-resolution tower sees is divided by."""
    low, high = tensors(pixels, model.mgm)
    high, dtype = F.avg_pool2d(high, shrinkage) if shrinkage > 1 else high, model.clip.dtype
    return model.features(low.to(dtype), high.to(dtype, memory_format=torch.channels_last))


def mixed(device: torch.device) -> torch.autocast:
    """The context that a pass is computed in: bf16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def values_at_labels(
    model: MGMForCausalLM,
    rows: list[TokenRow],
    pixels: Tensor | None,
    device: torch.device,
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """For each row what `function` makes of its last hidden states [n, d] at labelled positions, the head's
    weight [V, d] and the labels [n]; on the CPU, without dropout, in one pass. pixels: as of `labelled`."""
    training = model.training
    model.eval()
    with mixed(device):
        part = labelled(model, rows, pixels, device)
        hidden = model.decode(part.embeds, part.layout, part.positions)
        values = function(hidden, model.lm_head.weight, part.targets).cpu()
    model.train(training)
    return list(values.split([row.predictions for row in rows]))
