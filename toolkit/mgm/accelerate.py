"""What makes the model fast on a GPU and changes its results by rounding only: memory layout and compiled
blocks."""

import torch
import torch._functorch.config

from toolkit.mgm.model import MGMForCausalLM


def accelerate(model: MGMForCausalLM) -> None:
    """Lay convolutions out as tensor cores read them and compile the repeated blocks, each kind once, for any
    batch and length.

    Layers are compiled, not the whole model: seconds instead of minutes, and gradient checkpointing stays
    outside. The last decoder layer is called in parts (see MGMForCausalLM.decode).
    """
    # the same kernels in every run: none is chosen by a stopwatch
    torch._inductor.config.deterministic = True
    torch._dynamo.config.recompile_limit = 64
    # constants such as epsilons stay constants: as symbols they end the first tracing of each block, which
    # is then repeated without them
    torch._dynamo.config.specialize_float = True
    # nothing is compiled for the host, whose vector instructions are otherwise found out by running g++
    torch._inductor.config.cpp.vec_isa_ok = False
    # keep what matrix products and random numbers gave, compute again what follows from it element by
    # element: with LoRA's dropout a layer otherwise keeps half as much again. The allowlist stays: nothing
    # else is computed twice.
    torch._functorch.config.ban_recompute_materialized_backward = False
    torch._functorch.config.ban_recompute_used_far_apart = False
    torch._functorch.config.ban_recompute_long_fusible_chains = False
    # small work side by side is one kernel: a layer casts fourteen matrices of its adapters there and back
    torch._inductor.config.combo_kernels = True
    model.model.vision_tower_aux.to(memory_format=torch.channels_last)  # its maps come out in this layout too
    last = model.model.layers[-1]
    blocks = [*model.model.layers[:-1], last.self_attn, last.mlp, *model.clip.encoder.layers]
    tower = model.model.vision_tower_aux
    blocks += [
        tower.vision_stem,
        *(part for stage in tower.vision_stages for part in (stage.downsample, *stage.blocks)),
    ]
    for block in blocks:
        block.compile(dynamic=True)
