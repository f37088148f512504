"""The two training stages: what is trained, on what, and what is left behind."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# passes differ in length: without this, memory freed by one does not fit the next
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from toolkit.errors import UserError
from toolkit.files import atomic, sha256, write_json
from toolkit.mgm.accelerate import accelerate
from toolkit.mgm.answer import CPU_THREADS, choose_device
from toolkit.mgm.checkpoint import Weights, build, load_projector, load_tokenizer, save_checkpoint, save_projector
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.record import relative, write_record
from toolkit.scales import Scale, Stage, load
from toolkit.train import distributed, planner
from toolkit.train.dataset import Conversations
from toolkit.train.optimizer import AdamW
from toolkit.train.step import Execution, Stepper
from toolkit.train.trainer import Plan, Trainer

if TYPE_CHECKING:
    from toolkit.train.zero import Zero

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "safetensors", "tokenizers", "pillow")
STALE = ("merged", "merge.json", "adapter_*", "non_lora_trainables.bin", "model*.safetensors*", "tokenizer*", "generation_config.json")


def portable(command: list[str]) -> list[str]:
    """A command line with absolute paths made relative, for the record and for train.sh."""
    return [relative(part) if Path(part).is_absolute() else part for part in command]


def same_bits(device: torch.device) -> None:
    """Have torch compute the same bits in every run on one kind of device; call it before anything is computed."""
    if device.type == "cuda":
        # torch asks for this variable once, before the first matrix product, but some versions also parse it in every later one, a
        # tenth of a millisecond each: so it is there for one product only
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a seventh of a step, and nothing here reads such memory
    torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)


def prepare(
    scale: Scale, stage: Stage, llm: Path, clip: Path, convnext: Path, seed: int
) -> tuple[MGMForCausalLM, torch.device, torch.dtype]:
    """The untrained model on its device and the frozen weights' type: bf16 on a GPU, float32 on the CPU."""
    device = distributed.device() if distributed.world_size() > 1 else choose_device()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{torch.cuda.get_device_name()} has no bfloat16: train on a GPU of compute capability 8.0 or more")
    same_bits(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = build(
        llm,
        clip,
        convnext,
        dtype=dtype,
        device=device,
        seed=seed,
        image_size_aux=scale.image_size_aux,
        image_aspect_ratio=stage.image_aspect_ratio,
        model_max_length=scale.model_max_length,
    )
    return model, device, dtype


def train_only(model: MGMForCausalLM, wanted: Callable[[str], bool], *, float32: bool = True) -> dict[str, torch.nn.Parameter]:
    """Freeze everything but the parameters whose name is `wanted`; return those, in float32 unless the optimizer keeps such copies."""
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float() if float32 else parameter.data
            trained[name] = parameter
    return trained


def describe_parts(llm: Path, clip: Path, convnext: Path) -> dict[str, Path]:
    """Weight files of the three base models as named inputs of a record."""
    parts = {}
    for name, folder in (("llm", llm), ("clip", clip), ("convnext", convnext)):
        files = Weights(folder).files()
        parts |= {name if len(files) == 1 else f"{name}-{number}": path for number, path in enumerate(files, start=1)}
    return parts


def optimizer_for(
    model: MGMForCausalLM, parameters: dict[str, torch.nn.Parameter], plan: Plan, device: torch.device, budget: int | None, *, zero: bool
) -> "AdamW | Zero":
    """AdamW, or DeepSpeed's ZeRO with whichever of the kit's settings fits into the budget."""
    if not zero:
        return AdamW(parameters, plan.weight_decay, plan.max_grad_norm, device)
    from toolkit.train.zero import Zero, config

    processes = distributed.world_size()
    stage = planner.zero_stage(model, parameters, processes, planner.budget(budget))
    print(f"DeepSpeed: {stage} on {processes} GPU{'s' * (processes > 1)}", flush=True)
    settings = config(
        stage,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation // processes,
        processes=processes,
        max_grad_norm=plan.max_grad_norm,
        hidden_size=model.config.hidden_size,
        bf16=True,
    )
    return Zero(model, parameters, plan.weight_decay, settings, device)


def division(stepper: Stepper, dataset: Conversations, budget: int | None, before: Execution | None) -> Execution:
    """How a step is computed on a GPU: as `before` a continued run broke off, else as planned.

    The planner's passes are made in any case: kernels are compiled for the shapes that come first, and round as they were compiled.
    """
    planned = planner.plan(stepper, planner.longest_samples(dataset, 2), planner.budget(budget))
    return before or planned


def run_stage(
    kind: str,
    scale: Scale,
    stage: Stage,
    model: MGMForCausalLM,
    parameters: dict[str, torch.nn.Parameter],
    device: torch.device,
    *,
    inputs: dict[str, Path],
    images: Path,
    llm: Path,
    output: Path,
    log: str,
    seed: int,
    settings: dict[str, Any],
    save: Callable[[MGMForCausalLM], list[Path]],
    command: list[str],
    budget: int | None,
    zero: bool = False,
) -> None:
    """Train, save the outputs, write run.json last, drop the checkpoints; of several processes the first one writes.

    budget: bytes of each GPU's memory that may be allocated (None: what is free, less a reserve).
    """
    first = distributed.rank() == 0
    output.mkdir(parents=True, exist_ok=True)
    if first:
        (output / "run.json").unlink(missing_ok=True)
    tokenizer = load_tokenizer(llm, scale.model_max_length)
    dataset = Conversations(inputs["samples"], images, tokenizer, model.mgm, scale.template)
    plan = Plan.of(stage, len(dataset), seed)
    if plan.accumulation < distributed.world_size():
        raise UserError(f"{distributed.world_size()} GPUs cannot share the {plan.accumulation} micro-batches of a step: use fewer")
    hashes = {name: sha256(path) for name, path in inputs.items()}
    optimizer = optimizer_for(model, parameters, plan, device, budget, zero=zero)
    fingerprint = {"stage": kind, "inputs": hashes, **settings}
    grouped = stage.group_by_modality_length
    trainer = Trainer(model, optimizer, dataset, plan, output, log, fingerprint, grouped=grouped, device=device)
    start = trainer.resume()
    # on the CPU passes of one size everywhere, for the same bits on every machine
    execution = Execution(plan.micro_batch * scale.model_max_length)
    if device.type == "cuda":
        accelerate(model)
        execution = division(Stepper(model, optimizer, execution, device), dataset, budget, trainer.execution)
    results = trainer.run(execution, start)
    optimizer.close()
    if first:
        model.cpu()
        outputs = save(model)
        write_record(
            output / "run.json",
            kind,
            inputs=inputs,
            outputs={path.name: path for path in [*outputs, output / log]},
            settings={
                "scale": scale.name,
                **asdict(plan),
                "global_batch": stage.global_batch,
                "epochs": stage.epochs,
                **settings,
                "command": portable(command),
            },
            results=results | {"trained_parameters": sum(p.numel() for p in parameters.values())},
            packages=PACKAGES,
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        )
        trainer.finish()
    distributed.barrier()
    distributed.stop()


def pretrain(
    samples: Path,
    images: Path,
    llm: Path,
    clip: Path,
    convnext: Path,
    scale_name: str,
    seed: int,
    output: Path,
    command: list[str],
    budget: int | None = None,
) -> None:
    """Stage 1: projector and mining modules on image-caption pairs; writes mm_projector.bin, config.json, pretrain.log, run.json."""
    scale = load(scale_name)
    distributed.start()
    model, device, dtype = prepare(scale, scale.pretrain, llm, clip, convnext, seed)
    parameters = train_only(model, lambda name: any(part in name for part in TRAINED_NAMES))

    def save(trained: MGMForCausalLM) -> list[Path]:
        save_projector(trained.to(dtype), output / "mm_projector.bin")
        write_json(output / "config.json", trained.mgm.to_json())
        return [output / "mm_projector.bin", output / "config.json"]

    run_stage(
        "pretrain",
        scale,
        scale.pretrain,
        model,
        parameters,
        device,
        inputs={"samples": samples, **describe_parts(llm, clip, convnext)},
        images=images,
        llm=llm,
        output=output,
        log="pretrain.log",
        seed=seed,
        settings={},
        save=save,
        command=command,
        budget=budget,
    )


def finetune(
    samples: Path,
    images: Path,
    projector: Path,
    llm: Path,
    clip: Path,
    convnext: Path,
    scale_name: str,
    division: str,
    lora: dict[str, Any],
    seed: int,
    output: Path,
    command: list[str],
    budget: int | None = None,
) -> None:
    """Stage 2 on the fixed instruction data: division `closed` trains the whole language model, `open` LoRA; both the projector too.

    lora: rank, alpha, dropout, base (full or nf4; open only). Writes the kit's files, run.json, and the log under both of the kit's names.
    """
    from toolkit.train.lora import attach, save_adapter

    scale = load(scale_name)
    stage = scale.finetune[division]
    distributed.start()
    model, device, dtype = prepare(scale, stage, llm, clip, convnext, seed)
    load_projector(model, projector, dtype)
    zero = False
    if division == "open":
        if lora["base"] == "nf4":
            from toolkit.train.quantize import quantize

            quantize(model)
        attach(model, lora["rank"], lora["alpha"], lora["dropout"], seed)
        parameters = train_only(model, lambda name: "lora_" in name or any(part in name for part in TRAINED_NAMES))
    else:
        zero = device.type == "cuda"
        parameters = train_only(model, lambda name: "vision_tower" not in name, float32=not zero)
    # nothing of an earlier training, perhaps in the other division, may outlive it
    if distributed.rank() == 0:
        for path in [path for pattern in STALE for path in output.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save(trained: MGMForCausalLM) -> list[Path]:
        with atomic(output / "finetuning.log") as temporary:  # the kit's script and its README disagree on the name
            temporary.write_bytes((output / "finetune.log").read_bytes())
        if division == "closed":
            tokenizer = load_tokenizer(llm, scale.model_max_length)
            shards = save_checkpoint(trained.to(dtype), output, tokenizer)
            return [*shards, output / "model.safetensors.index.json", output / "config.json", output / "finetuning.log"]
        write_json(output / "config.json", trained.mgm.to_json())
        return [*save_adapter(trained, output, relative(llm)), output / "config.json", output / "finetuning.log"]

    run_stage(
        "finetune",
        scale,
        stage,
        model,
        parameters,
        device,
        inputs={"samples": samples, "projector": projector, **describe_parts(llm, clip, convnext)},
        images=images,
        llm=llm,
        output=output,
        log="finetune.log",
        seed=seed,
        settings={"division": division} | ({"lora": lora} if division == "open" else {}),
        save=save,
        command=command,
        budget=budget,
        zero=zero,
    )
