"""What makes the model fast on a GPU and changes its results by rounding only: memory layout and compiled blocks."""

import torch

from toolkit.mgm.model import MGMForCausalLM


def accelerate(model: MGMForCausalLM) -> None:
    """Lay convolutions out as tensor cores read them and compile the repeated blocks, each kind once, for any batch and length.

    Layers are compiled, not the whole model: seconds instead of minutes, and gradient checkpointing stays outside. The last decoder
    layer is called in parts (see MGMForCausalLM.decode).
    """
    torch._inductor.config.deterministic = True  # the same kernels in every run: none is chosen by a stopwatch
    torch._dynamo.config.recompile_limit = 64
    model.model.vision_tower_aux.to(memory_format=torch.channels_last)  # its maps come out in this layout too
    last = model.model.layers[-1]
    blocks = [*model.model.layers[:-1], last.self_attn, last.mlp, *model.clip.encoder.layers]
    blocks += [block for stage in model.model.vision_tower_aux.vision_stages for block in stage.blocks]
    for block in blocks:
        block.compile(dynamic=True)
