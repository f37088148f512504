"""The two training stages: what is trained, on what, and what is left behind."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# passes differ in length: without this, memory freed by one does not fit the next
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from toolkit.contest.records import Record, read_record, relative, write_record
from toolkit.errors import UserError
from toolkit.files import atomic, read_json, sha256, write_json
from toolkit.mgm.accelerate import accelerate
from toolkit.mgm.checkpoint import build, load_projector, load_tokenizer, save_checkpoint, save_projector
from toolkit.mgm.device import CPU_THREADS, choose_device
from toolkit.mgm.folder import TOKENIZER, checkpoint_files, discard_checkpoint, is_checkpoint
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.mgm.weights import Weights
from toolkit.scales import Scale, Stage, load
from toolkit.train import distributed, planner
from toolkit.train.dataset import Conversations
from toolkit.train.lora import ADAPTER, attach, discard_adapter, save_adapter
from toolkit.train.optimizer import AdamW
from toolkit.train.step import Execution, Stepper
from toolkit.train.trainer import Plan, Trainer

if TYPE_CHECKING:
    from toolkit.train.zero import Zero

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "safetensors",
    "tokenizers",
    "pillow",
)
MONITOR = "monitor.jsonl"  # is in every folder in which this program has trained, finished or not
WRITTEN = (
    "run.json",
    "merge.json",
    "mm_projector.bin",
    "pretrain.log",
    "finetune.log",
    "finetuning.log",
    *ADAPTER,
)


def portable(command: list[str]) -> list[str]:
    """A command line with absolute paths made relative, for the record and for train.sh."""
    return [relative(part) if Path(part).is_absolute() else part for part in command]


def same_bits(device: torch.device) -> None:
    """Have torch compute the same bits in every run on one kind of device; call it before anything is
    computed."""
    if device.type == "cuda":
        # torch asks for this variable once, before the first matrix product, but some versions also parse it
        # in every later one, a tenth of a millisecond each: so it is there for one product only
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    # a seventh of a step, and nothing here reads such memory
    torch.utils.deterministic.fill_uninitialized_memory = False
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
        raise UserError(
            f"{torch.cuda.get_device_name()} has no bfloat16: train on a GPU of compute capability 8.0 or "
            "more"
        )
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


def train_only(
    model: MGMForCausalLM, wanted: Callable[[str], bool], *, float32: bool = True
) -> dict[str, torch.nn.Parameter]:
    """Freeze everything but the parameters whose name is `wanted`; return those, in float32 unless the
    optimizer keeps such copies."""
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float() if float32 else parameter.data
            trained[name] = parameter
    return trained


def describe_parts(llm: Path, clip: Path, convnext: Path) -> dict[str, Path]:
    """What is read of the three base models, as named inputs of a record: weights, configurations,
    tokenizer."""
    parts = {}
    beside = {
        "llm": ("config.json", *TOKENIZER),
        "clip": ("config.json",),
        "convnext": ("open_clip_config.json",),
    }
    for (name, names), folder in zip(beside.items(), (llm, clip, convnext), strict=True):
        files = Weights(folder).files()
        parts |= {
            name if len(files) == 1 else f"{name}-{number}": path
            for number, path in enumerate(files, start=1)
        }
        parts |= {f"{name}/{file}": folder / file for file in names if (folder / file).is_file()}
    return parts


def hashed(inputs: Mapping[str, Path]) -> dict[Path, str]:
    """SHA-256 of each input; UserError when an asset's manifest.json lies beside one that it does not list,
    or lists with another hash."""
    hashes = {}
    for path in inputs.values():
        hashes[path] = sha256(path)
        manifest = path.parent / "manifest.json"
        listed = read_json(manifest) if manifest.is_file() else {}
        if isinstance(listed, dict) and "asset" in listed and isinstance(files := listed.get("files"), dict):
            known = files.get(path.name)
            if not isinstance(known, dict) or known.get("sha256") != hashes[path]:
                raise UserError(
                    f"{path} is not the file that {manifest} lists (sha256): fetch the asset again"
                )
    return hashes


def claim(output: Path, kind: str) -> None:
    """Make `output` ready for the stage `kind`: delete what an earlier training, perhaps in the other
    division, and its merge left there.

    Only what is recognised as theirs is deleted. UserError when the folder holds files of such names that no
    training wrote, or the record of another stage.
    """
    output.mkdir(parents=True, exist_ok=True)
    record, proof = output / "run.json", output / "merge.json"
    others = [path for name in WRITTEN if (path := output / name).exists()] + checkpoint_files(output)
    if others and not (output / MONITOR).is_file():
        raise UserError(f"{others[0]} was not written by a training: move it away, or choose another folder")
    if record.exists():
        read_record(record, kind)
    if kind == "finetune":
        if proof.exists():
            read_record(proof, "merge")
        discard_checkpoint(output / "merged")
        discard_adapter(output)
        if (output / "config.json").is_file() or is_checkpoint(output):
            discard_checkpoint(output)
        proof.unlink(missing_ok=True)
    record.unlink(missing_ok=True)
    (output / MONITOR).touch()


def optimizer_for(
    model: MGMForCausalLM,
    parameters: dict[str, torch.nn.Parameter],
    plan: Plan,
    device: torch.device,
    budget: int | None,
    *,
    zero: bool,
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


def division(
    stepper: Stepper, dataset: Conversations, budget: int | None, before: Execution | None
) -> Execution:
    """How a step is computed on a GPU: as `before` a continued run broke off, else as planned.

    The planner's passes are made in any case: kernels are compiled for the shapes that come first, and round
    as they were compiled.
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
    hashes: dict[Path, str],
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
    """Train, save the outputs, write run.json last, drop the checkpoints; of several processes the first one
    writes.

    hashes: of the inputs. budget: bytes of each GPU's memory that may be allocated (None: what is free, less
    a reserve).
    """
    first = distributed.rank() == 0
    if first:
        claim(output, kind)
    tokenizer = load_tokenizer(llm, scale.model_max_length)
    dataset = Conversations(inputs["samples"], images, tokenizer, model.mgm, scale.template)
    plan = Plan.of(stage, len(dataset), seed)
    if plan.accumulation < distributed.world_size():
        raise UserError(
            f"{distributed.world_size()} GPUs cannot share the {plan.accumulation} micro-batches of a step: "
            "use fewer"
        )
    optimizer = optimizer_for(model, parameters, plan, device, budget, zero=zero)
    fingerprint = {"stage": kind, "inputs": {name: hashes[path] for name, path in inputs.items()}, **settings}
    grouped = stage.group_by_modality_length
    trainer = Trainer(
        model, optimizer, dataset, plan, output, log, fingerprint, grouped=grouped, device=device
    )
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
            known=hashes,
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
    """Stage 1: projector and mining modules on image-caption pairs; writes mm_projector.bin, config.json,
    pretrain.log, run.json."""
    scale = load(scale_name)
    inputs = {"samples": samples, **describe_parts(llm, clip, convnext)}
    hashes = hashed(inputs)
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
        inputs=inputs,
        hashes=hashes,
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


def assert_pretrained(projector: Path, parts: Mapping[str, Path], hashes: Mapping[Path, str]) -> None:
    """UserError unless the record beside the projector's file lists this very file and was made with these
    base models. The kit's file has no record, which is said."""
    path = projector.parent / "run.json"
    if not path.exists():
        print(
            f"{projector} has no run.json beside it: which base models it was trained with is not known",
            file=sys.stderr,
        )
        return
    record = read_record(path, "pretrain")
    if projector.name not in record.outputs or record.outputs[projector.name].sha256 != hashes[projector]:
        raise UserError(
            f"{projector} is not the file that {path} lists (sha256): restore it, or pretrain again"
        )
    assert_same_parts(record, parts, hashes)


def assert_same_parts(record: Record, parts: Mapping[str, Path], hashes: Mapping[Path, str]) -> None:
    """UserError when the base models are not those that a training's record names."""
    stated = {
        name: item.sha256 for name, item in record.inputs.items() if name not in ("samples", "projector")
    }
    others = sorted(
        name for name in {*stated, *parts} if stated.get(name) != (name in parts and hashes[parts[name]])
    )
    if others:
        names = ", ".join(str(parts.get(name, name)) for name in others)
        raise UserError(f"{Path(record.file).parent} was trained on another base: {names} has changed since")


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
    """Stage 2 on the fixed instruction data: division `closed` trains the whole language model, `open` LoRA;
    both the projector too.

    lora: rank, alpha, dropout, base (full or nf4; open only). Writes the kit's files, run.json, and the log
    under both of the kit's names.
    """
    scale = load(scale_name)
    stage = scale.finetune[division]
    parts = describe_parts(llm, clip, convnext)
    inputs = {"samples": samples, "projector": projector, **parts}
    hashes = hashed(inputs)
    assert_pretrained(projector, parts, hashes)
    distributed.start()
    model, device, dtype = prepare(scale, stage, llm, clip, convnext, seed)
    load_projector(model, projector, dtype)
    zero = False
    if division == "open":
        if lora["base"] == "nf4":
            from toolkit.train.quantize import quantize

            quantize(model)
        attach(model, lora["rank"], lora["alpha"], lora["dropout"], seed)
        parameters = train_only(
            model, lambda name: "lora_" in name or any(part in name for part in TRAINED_NAMES)
        )
    else:
        zero = device.type == "cuda"
        parameters = train_only(model, lambda name: "vision_tower" not in name, float32=not zero)

    def save(trained: MGMForCausalLM) -> list[Path]:
        # the kit's script and its README disagree on the name
        with atomic(output / "finetuning.log") as temporary:
            temporary.write_bytes((output / "finetune.log").read_bytes())
        if division == "closed":
            save_checkpoint(trained.to(dtype), output, load_tokenizer(llm, scale.model_max_length))
            return [*checkpoint_files(output), output / "finetuning.log"]
        write_json(output / "config.json", trained.mgm.to_json())
        return [
            *save_adapter(trained, output, relative(llm)),
            output / "config.json",
            output / "finetuning.log",
        ]

    run_stage(
        "finetune",
        scale,
        stage,
        model,
        parameters,
        device,
        inputs=inputs,
        hashes=hashes,
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
