"""QLoRA (arXiv 2305.14314): the decoder's linear layers frozen in 4 bits, so that LoRA finetuning fits a
small card.

NF4: blocks of 64 weights, each scaled by its largest magnitude and rounded to 16 quantiles of a normal
distribution; the scales are themselves 8-bit in blocks of 256 (double quantisation), 4.13 bits a weight in
all. bitsandbytes does it, as in the official code, which too leaves projector, towers and embeddings as they
are. Products are computed in the weights' former type: bf16 on a GPU.

The adapter is folded into the base as it was, not into the 4-bit one. A fold into 4-bit weights would be
rounded to 4 bits again, or keep the rounding errors in a checkpoint of full size, and the proof of `train
merge` could not tell an error of the fold from one of rounding. So the merged checkpoint is like any other,
and the proof compares like with like: the adapter on the full base against the merged weights. The cost: the
adapter learned beside rounding errors, and what it learned to undo of them is not there any more. The model
that was trained and the merged one therefore differ by about the rounding error; evaluate the merged one.
"""

import re

from bitsandbytes.nn import Linear4bit, Params4bit
from torch import device, nn

from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.lora import TARGETS


def four_bits(linear: nn.Linear, target: device) -> Linear4bit:
    """The layer on `target` with its weight [out, in] in NF4, frozen; products in the weight's present
    type."""
    layer = Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype, device="meta"
    )
    layer.weight = Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
    )
    return layer.to(target)  # the move is what quantises


def quantize(model: MGMForCausalLM, target: device) -> None:
    """Replace the decoder's linear layers, seven a block, in place and on `target`, before LoRA is attached.

    The full layers go one by one, so the card never holds the model as it was.
    """
    for name in [name for name, _ in model.named_modules() if re.fullmatch(TARGETS, name)]:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, four_bits(linear, target))
    # PEFT then wraps them as what they are; to torch's types every attribute is a tensor or a module
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
