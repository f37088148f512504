"""DeepSpeed's ZeRO (arXiv 1910.02054) in place of AdamW: the kit's zero2, zero2_offload and zero3 settings,
and exact resume.

Full finetuning of 2.5 billion parameters needs 16 bytes for each; ZeRO divides them among GPUs or keeps most
of them in the host's memory (arXiv 2101.06840). Only a training that needs this imports DeepSpeed. Nothing is
compiled: torch's own fused AdamW runs on either side.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.mgm.model import MGMForCausalLM
from toolkit.train import distributed
from toolkit.train.optimizer import BETAS, EPS, MOMENTS, Optimizer, groups


def config(
    stage: str,
    *,
    micro_batch: int,
    accumulation: int,
    processes: int,
    max_grad_norm: float,
    hidden_size: int,
    bf16: bool,
) -> dict[str, Any]:
    """The kit's scripts/{stage}.json with its "auto" values filled in as Transformers does.

    micro_batch x accumulation x processes is the global batch; hidden_size is Gemma's, which sizes the
    buckets.
    """
    zero: dict[str, Any] = {
        "stage": 3 if stage == "zero3" else 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": hidden_size**2,
    }
    if stage == "zero2_offload":
        zero |= {
            name: {"device": "cpu", "pin_memory": True} for name in ("offload_optimizer", "offload_param")
        }
    if stage == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
            "stage3_param_persistence_threshold": 10 * hidden_size,
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    scaling = {
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    }
    return {
        "fp16": {"enabled": False, **scaling},
        "bf16": {"enabled": bf16},
        "train_micro_batch_size_per_gpu": micro_batch,
        "train_batch_size": micro_batch * accumulation * processes,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
    }


class _Call(nn.Module):
    """Calls a function within a module's forward, where ZeRO-3's hooks fetch whatever parameters the function
    reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def fetch(self, register: Callable[[nn.Module, Parameter], None]) -> None:
        """Have what is read outside its own module's forward (mining's weights, and the head) fetched
        with this one."""
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in ("embed_tokens", "lm_head", "vlm_uni")):
                register(self, parameter)

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Zero(Optimizer):
    """AdamW by DeepSpeed on name -> parameter of `model`, settings as from `config`. On a GPU weights are
    bf16 and their masters float32; on the CPU all is float32.

    lockstep: the processes must go through the same number of passes, each with all parameters in it:
    gradients are summed as they come, and ZeRO-3 fetches weights within a pass alone.
    """

    def __init__(
        self,
        model: MGMForCausalLM,
        parameters: dict[str, Parameter],
        weight_decay: float,
        settings: dict,
        device: torch.device,
    ):
        self.model, self.parameters = model, parameters
        self.stage3 = settings["zero_optimization"]["stage"] == 3
        self.lockstep = distributed.world_size() > 1 or self.stage3
        self.offload = "offload_optimizer" in settings["zero_optimization"]
        deepspeed = _deepspeed(device)
        adam = torch.optim.AdamW(groups(parameters, weight_decay), lr=0.0, betas=BETAS, eps=EPS, fused=True)
        ours = {
            # `step` ends an accumulation, whatever the number of passes before it
            "managed_gradient_accumulation": False,
            # sums of hundreds of bf16 gradients would lose the small ones; 4 bytes a parameter instead of 2
            "data_types": {"grad_accum_dtype": "fp32"},
            # torch's fused AdamW is as fast on the host, and DeepSpeed's would be compiled first
            "zero_force_ds_cpu_optimizer": False,
        }
        if not self.stage3:
            ours["gradient_allreduce_op"] = "sum"  # tokens carry their share of the global mean already
        call, rotary = _Call(model), model.model.rotary_emb
        frequencies = rotary.inv_freq
        self.engine, *_ = deepspeed.initialize(model=call, optimizer=adam, config=settings | ours)
        rotary.inv_freq = frequencies  # rounded to bf16 they would be off by radians at the last positions
        if self.stage3:
            call.fetch(deepspeed.zero.register_external_parameter)
        self.zero = self.engine.optimizer
        # made here and not in the first step, where DeepSpeed links the moments of the first group alone
        for partition in self._partitions():
            moments = {key: torch.zeros_like(partition, requires_grad=False) for key in MOMENTS}
            self.zero.state[partition] = moments | {"step": torch.zeros((), device=partition.device)}
        if not self.stage3:
            self.zero._lazy_init_hp_params_optimizer_state()
            self._keep_gradients()

    def _keep_gradients(self) -> None:
        """Allocate the float32 sums of ZeRO-2 once, which DeepSpeed would free after each step and ask for
        within the next backward pass.

        Four bytes a number in one piece: by then activations lie in the piece that was freed, and no second
        one fits.
        """
        zero = self.zero
        first: dict[int, Any] = {}  # of each group

        def cleared(group: int) -> Any:
            made = first[group] if group in first else first.setdefault(group, build(group))
            made.flat_partition.zero_()
            return type(made)(made, made.flat_partition)

        def add(total: Tensor | None, gradient: Tensor) -> None:
            if total is not None:
                total.add_(gradient)  # bf16 is added to float32 as it is, without a float32 copy of it

        if all(zero._use_compact_grad_partition_buffer(group) for group in range(len(zero.bit16_groups))):
            build, zero._build_compact_grad_partition_buffer = (
                zero._build_compact_grad_partition_buffer,
                cleared,
            )
            zero._add_to_grad_partition_buffer = add
            for group in range(len(zero.bit16_groups)):
                cleared(group)
            # where gradients would be summed in the host's memory: as large as the largest matrix
            if self.offload:
                zero.temp_grad_buffer_for_gpu_offload = None

    def _partitions(self) -> list[Tensor]:
        """This process's flat float32 parts of the trained parameters."""
        return (
            self.zero.fp32_partitioned_groups_flat
            if self.stage3
            else self.zero.single_partition_of_fp32_groups
        )

    def forward(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`function(*arguments)`, a loss that `backward` may be called with."""
        with _together():
            return self.engine(function, *arguments)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`."""
        # ZeRO-3 always divides by the number of processes; undone here, exactly where that is a power of two
        with _together():
            self.engine.backward(
                loss * distributed.world_size() if self.stage3 else loss, scale_wrt_gas=False
            )

    def step(self, rate: float) -> float:
        """One update at learning rate `rate` with the gradients added since the last; returns their norm
        before clipping."""
        self.zero.set_lr(rate)
        if self.offload:
            self._clear_absent()
        self.engine.step()
        if self.stage3:
            self._clear_partitions()
        return float(self.engine.get_global_grad_norm())

    def _clear_absent(self) -> None:
        """Zero the host's gradients of parameters that had none in this step: DeepSpeed would apply those of
        an earlier one again."""
        zero = self.zero
        for group, gradients in enumerate(zero.offload_gradient_dict.values()):
            for parameter, gradient in zip(zero.params_in_partition[group], gradients, strict=True):
                if zero.get_param_id(parameter) not in zero._offload_accumulated_param_ids:
                    gradient.zero_()

    def _clear_partitions(self) -> None:
        """Zero ZeRO-3's gradients: DeepSpeed would add to, and apply, an earlier step's where a parameter has
        none in this one."""
        for gradient in self.zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values():
            gradient.zero_()

    def discard(self) -> None:
        """Forget the gradients, also after a pass that broke off."""
        zero = self.zero
        while zero._backward_active_depth:
            zero.exit_backward()
        zero.clear_backward_seen_flag()
        for parameter in self.parameters.values():
            parameter.grad = None
        zero.zero_grad()
        reduced = zero.params_already_reduced  # a dict in ZeRO-3, a list in ZeRO-2
        for key in list(reduced) if self.stage3 else range(len(reduced)):
            reduced[key] = False
        if self.stage3:
            zero._partition_all_parameters()
            zero._pre_step()
            self._clear_partitions()
            return
        for bucket in zero.ipg_buckets.values():
            bucket.clear()
        zero.extra_large_param_to_reduce.clear()
        zero._release_ipg_buffers()
        zero.averaged_gradients.clear()
        zero.all_grad_tensors.clear()
        zero.micro_step_id = -1  # the next pass is a step's first
        if self.offload:
            zero._offload_accumulated_param_ids.clear()
            zero.reset_cpu_buffers()

    def state(self) -> dict[str, Tensor]:
        """Values and moments on the CPU, in float32: `value.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`,
        `step.NAME`.

        All processes take part; only the first one keeps the tensors, the others get none.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        tensors: dict[str, Tensor] = {}
        steps = self.zero.state[self._partitions()[0]]["step"]
        for name, parameter in self.parameters.items():
            values = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            values |= {"value": safe_get_full_fp32_param(parameter), "step": steps}
            if distributed.rank() == 0:
                tensors |= {
                    f"{key}.{name}": value.detach().to("cpu", copy=True) for key, value in values.items()
                }
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave, here or AdamW's."""
        zero = self.zero
        for name, parameter in self.parameters.items():
            for key in ("value", *MOMENTS):
                self._put(parameter, tensors[f"{key}.{name}"], None if key == "value" else key)
        for partition in self._partitions():
            zero.state[partition]["step"].copy_(tensors[f"step.{name}"])
        if not self.stage3:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for group in range(len(self._partitions())):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero._post_step(set())

    def _put(self, parameter: Parameter, value: Tensor, moment: str | None) -> None:
        """Write this process's part of a float32 value, or of a moment of it."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if not self.stage3:
            if moment is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)
            return
        # the last process's part may be padded, which safe_set_full_* do not know
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed's
        padded = F.pad(value.flatten(), (0, size * distributed.world_size() - value.numel()))
        self.zero.set_local_hp_param(padded[size * distributed.rank() :][:size], parameter, moment)

    def close(self) -> None:
        """Give the model its whole parameters back, the trained ones in float32 on the CPU, and let go of
        DeepSpeed."""
        import deepspeed

        trained = {id(p) for p in self.parameters.values()}
        whole = {}
        for name, parameter in self.model.named_parameters():
            if id(parameter) in trained:
                whole[name] = deepspeed.utils.safe_get_full_fp32_param(parameter).to("cpu", copy=True)
            elif self.stage3:
                with deepspeed.zero.GatheredParameters([parameter]):
                    whole[name] = parameter.detach().to("cpu", copy=True)
        parameters = dict(self.model.named_parameters())
        self.engine.destroy()
        for name, value in whole.items():
            parameters[name].data = value


@contextmanager
def _together() -> Iterator[None]:
    """End a process of several that runs out of memory: the others wait in the middle of a pass for its
    gradients."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        if distributed.world_size() == 1:
            raise
        raise UserError(
            f"a GPU ran out of memory, set a smaller memory budget: {str(error).splitlines()[0]}"
        ) from None


def _deepspeed(device: torch.device) -> Any:
    """The package, in a process group of its own where there is one process, and quiet."""
    lone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(distributed.free_port()),
    }
    if "RANK" not in os.environ:
        os.environ.update(lone)  # else it looks for MPI
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # no operator of its own: on the CPU it would compile one for a minute that gloo does without
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
