"""The decoder's gated MLP under LoRA on a GPU: gate, up and what their adapters add to them become the down
projection's input in one kernel.

The compiler alone would write what each adapter adds, eight times as wide as the hidden states, and read it
again. Sums are in float32 either way.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from toolkit.mgm.language import GATES
from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.dropout import drawn, seeded

try:
    from toolkit.train import gated_kernel
except ImportError:  # Triton comes with the CUDA builds of PyTorch only
    gated_kernel = None  # type: ignore[assignment]


class _Gated(Function):
    """(activation(gate) * up [n, w], the same after dropout @ down_a.T [n, r]), where what their adapters
    add, low [n, r] @ b.T [r, w], is first added to gate and to up [n, w].

    low: after lora_A, scaled; b: lora_B; down_a: the down projection's lora_A.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        gate_low: Tensor,
        up_low: Tensor,
        gate_b: Tensor,
        up_b: Tensor,
        down_a: Tensor,
        probability: float,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:
        seed = drawn(gate.device)
        gate, up, out, dropped = gated_kernel.gated(
            gate, up, gate_low, up_low, gate_b, up_b, seed, probability, silu
        )
        ctx.save_for_backward(gate, up, gate_low, up_low, gate_b, up_b, down_a, seed)
        ctx.probability, ctx.silu = probability, silu
        return out, dropped @ down_a.t()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_low: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Computes again what the forward pass gave, which the compiler does on the way."""
        gate, up, gate_low, up_low, gate_b, up_b, down_a, seed = ctx.saved_tensors
        exact, aten = gate.float(), torch.ops.aten
        active = F.silu(exact) if ctx.silu else F.gelu(exact)
        dropped = seeded((active * up).to(up.dtype), ctx.probability, seed)
        total = d_out.float() + seeded(d_low @ down_a, ctx.probability, seed)
        d_active = (aten.silu_backward if ctx.silu else aten.gelu_backward)(total * up, exact)
        d_gate, d_up = d_active.to(gate.dtype), (total * active).to(up.dtype)
        return (
            d_gate,
            d_up,
            d_gate @ gate_b,
            d_up @ up_b,
            d_gate.t() @ gate_low,
            d_up.t() @ up_low,
            d_low.t() @ dropped,
            None,
            None,
        )


class GatedMLP(nn.Module):
    """A decoder's MLP whose three layers PEFT has adapted, under the same names."""

    def __init__(self, mlp: Any, silu: bool) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn, self.silu = mlp.act_fn, silu

    def forward(self, values: Tensor) -> Tensor:
        """values [..., d]."""
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        if not (self.training and values.is_cuda):
            return down(self.act_fn(gate(values)) * up(values))
        shape, values = values.shape, values.flatten(0, -2)
        bases = gate.base_layer(values), up.base_layer(values)
        kind = bases[0].dtype
        out, low = _Gated.apply(
            *bases,
            _low_rank(gate, values).to(kind),
            _low_rank(up, values).to(kind),
            gate.lora_B["default"].weight.to(kind),
            up.lora_B["default"].weight.to(kind),
            down.lora_A["default"].weight.to(kind),
            getattr(down.lora_dropout["default"], "p", 0.0),
            self.silu,
        )
        added = down.lora_B["default"](low) * down.scaling["default"]
        return (down.base_layer(out) + added).reshape(shape)


def _low_rank(layer: Any, values: Tensor) -> Tensor:
    """What the layer's lora_B takes [n, r], scaled."""
    return layer.lora_A["default"](layer.lora_dropout["default"](values)) * layer.scaling["default"]


def fuse(model: MGMForCausalLM) -> None:
    """Let the MLPs of `model`, to which LoRA is attached, train by the kernel on a GPU."""
    activation = model.mgm.language.hidden_act
    if gated_kernel is not None and activation in GATES:
        for layer in model.model.layers:
            layer.mlp = GatedMLP(layer.mlp, activation == "silu")
