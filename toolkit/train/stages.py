"""The two training stages: what is trained, on what, and what is left behind."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# passes differ in length: without this, memory freed by one does not fit the next
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from toolkit import code
from toolkit.contest.records import read_record, relative, versions, write_record
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import atomic, write_json
from toolkit.mgm.accelerate import accelerate
from toolkit.mgm.checkpoint import build, load_projector, save_checkpoint, save_projector
from toolkit.mgm.device import CPU_THREADS, choose_device
from toolkit.mgm.folder import checkpoint_files, discard_checkpoint, is_checkpoint
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.scales import Scale, Stage
from toolkit.train import distributed, fp8, planner
from toolkit.train.dataset import Conversations
from toolkit.train.inputs import BaseModels, assert_pretrained, hashed
from toolkit.train.lora import ADAPTER, attach, discard_adapter, save_adapter
from toolkit.train.masters import MasterAdamW
from toolkit.train.monitor import Start
from toolkit.train.optimizer import AdamW, Optimizer
from toolkit.train.step import Execution, Stepper
from toolkit.train.strategies.registry import chosen
from toolkit.train.trainer import Plan, Trainer

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


@dataclass(frozen=True)
class Job:
    """One run of a stage, as the command line asks for it.

    images: the folder that the samples' image paths start from. budget: bytes of each GPU's memory that may
    be allocated (None: what is free, less a reserve). strategy: of toolkit.config.STRATEGIES (None: the plain
    training). teacher: finetuning folder, for distillation. deepspeed: the kit's setting that takes the place
    of the optimizer chosen for a full finetuning.
    """

    samples: Path
    images: Path
    base: BaseModels
    scale: Scale
    seed: int
    output: Path
    command: list[str]
    budget: int | None = None
    strategy: str | None = None
    teacher: Path | None = None
    deepspeed: str | None = None


@dataclass(frozen=True)
class Lora:
    """The adapter of the open division, and what it is trained on: weights as they are, in 4 or 8 bits."""

    rank: int
    alpha: int
    dropout: float
    base: str  # full, nf4 or fp8


@dataclass(frozen=True)
class Training:
    """What distinguishes a stage: its numbers, the files that decide its result and their SHA-256, what its
    record states of it, what is written afterwards, how long its start took so far, and the template where it
    is not the scale's."""

    kind: str
    stage: Stage
    inputs: dict[str, Path]
    hashes: dict[Path, str]
    settings: dict[str, Any]
    save: Callable[[MGMForCausalLM], list[Path]]
    began: Start
    template: str | None = None


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
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)


def prepare(
    job: Job, stage: Stage, *, on_host: bool = False
) -> tuple[MGMForCausalLM, torch.device, torch.dtype]:
    """The untrained model, its device, and the frozen weights' type: bf16 on a GPU, float32 on the CPU.

    on_host: leave the model in the host's memory, since it will only fit its device once it is quantised.
    """
    device = distributed.device() if distributed.world_size() > 1 else choose_device()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name()} has no bfloat16: train on a GPU of compute capability 8.0 or "
            "more"
        )
    same_bits(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = build(
        job.base.llm,
        job.base.clip,
        job.base.convnext,
        dtype=dtype,
        device="cpu" if on_host else device,
        seed=job.seed,
        image_aspect_ratio=stage.image_aspect_ratio,
        **job.scale.sight(stage).settings(),
    )
    if (kind := type(model.mgm.language).__name__.lower()) != job.scale.language_model:
        raise UserError(
            f"{job.base.llm} holds a {kind}, the scale {job.scale.name} is for {job.scale.language_model}: "
            "choose another scale or another asset for llm"
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
    deepspeed: str | None = None,
    part: Callable[[str], str] = lambda name: "",
) -> Optimizer:
    """AdamW, of `part`s; of bf16 parameters one that keeps float32 copies where the budget has room:
    DeepSpeed's where several GPUs share them, and in any case with its setting `deepspeed`.
    """
    if all(parameter.dtype == torch.float32 for parameter in parameters.values()):
        return AdamW(parameters, plan.weight_decay, plan.max_grad_norm, device, part)
    processes = distributed.world_size()
    setting = deepspeed or planner.setting(model, parameters, processes, planner.budget(budget))
    if not deepspeed and (processes == 1 or setting == "offload"):
        offload = setting == "offload"
        place = "in the host's memory" if offload else "on the GPU"
        print(f"optimizer: float32 weights and moments {place}", flush=True)
        return MasterAdamW(parameters, plan.weight_decay, plan.max_grad_norm, device, offload=offload)
    from toolkit.train.zero import Zero, config

    print(f"DeepSpeed: {setting} on {counted(processes, 'GPU')}", flush=True)
    settings = config(
        setting,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation // processes,
        processes=processes,
        max_grad_norm=plan.max_grad_norm,
        hidden_size=model.config.hidden_size,
        bf16=True,
    )
    return Zero(model, parameters, plan.weight_decay, settings, device)


def execution_plan(
    stepper: Stepper, dataset: Conversations, budget: int | None, before: Execution | None
) -> Execution:
    """How a step is computed on a GPU: as `before` a continued run broke off, else as planned.

    The planner's passes are made in any case: kernels are compiled for the shapes that come first, and round
    as they were compiled.
    """
    planned = planner.plan(stepper, planner.longest_samples(dataset, 2), planner.budget(budget))
    return before or planned


def run_stage(
    job: Job,
    training: Training,
    model: MGMForCausalLM,
    parameters: dict[str, torch.nn.Parameter],
    device: torch.device,
) -> None:
    """Train, save the outputs, write run.json last, drop the checkpoints; of several processes the first one
    writes."""
    first, log = distributed.rank() == 0, f"{training.kind}.log"
    tokenizer = load_tokenizer(job.base.llm, model.mgm.model_max_length)
    template = training.template or job.scale.template
    dataset = Conversations(job.samples, job.images, tokenizer, model.mgm, template)
    if training.kind == "pretrain" and not any("image" in row for row in dataset.rows):
        raise UserError(f"{job.samples} has no row with an image: projector and mining would not be trained")
    training.began.end("samples")
    plan = Plan.of(training.stage, len(dataset), job.seed)
    if plan.accumulation < distributed.world_size():
        raise UserError(
            f"{distributed.world_size()} GPUs cannot share the {plan.accumulation} micro-batches of a step: "
            "use fewer"
        )
    strategy = chosen(job.strategy, job.seed, job.teacher)
    optimizer = optimizer_for(
        model, parameters, plan, device, job.budget, deepspeed=job.deepspeed, part=strategy.part
    )
    if first:  # what can be refused was: an earlier training stays where this one cannot begin
        claim(job.output, training.kind)
    distributed.barrier()
    hashes = {name: training.hashes[path] for name, path in training.inputs.items()}
    settings = training.settings | ({"strategy": job.strategy} if job.strategy else {})
    trainer = Trainer(
        model,
        optimizer,
        dataset,
        plan,
        job.output,
        log,
        {
            "stage": training.kind,
            "inputs": hashes,
            "code": code.digest(__name__),
            "versions": versions(*PACKAGES),
            **settings,
        },
        grouped=training.stage.group_by_modality_length,
        device=device,
        strategy=strategy,
    )
    if job.strategy:
        training.began.end(f"strategy {job.strategy}")
    start = trainer.resume()
    # on the CPU passes of one size everywhere, for the same bits on every machine
    execution = Execution(plan.micro_batch * model.mgm.model_max_length)

    def planned() -> Execution:
        if device.type == "cpu":
            return execution
        accelerate(model)
        stepper = Stepper(model, optimizer, execution, device, trainer.strategy)
        print("compiling the kernels that the cache lacks, measuring passes", flush=True)
        result = execution_plan(stepper, dataset, job.budget, trainer.execution)
        training.began.end("kernels and memory plan")
        return result

    results = trainer.run(planned, start, training.began)
    optimizer.close()
    if first:
        outputs = [*training.save(model.cpu()), job.output / log]
        write_record(
            job.output / "run.json",
            training.kind,
            inputs=training.inputs,
            outputs={path.name: path for path in outputs},
            settings={
                "scale": job.scale.name,
                **asdict(plan),
                "global_batch": training.stage.global_batch,
                "epochs": training.stage.epochs,
                **settings,
                "command": portable(job.command),
            },
            results=results | {"trained_parameters": sum(p.numel() for p in parameters.values())},
            packages=PACKAGES,
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            known=training.hashes,
        )
        trainer.finish()
    distributed.barrier()
    distributed.stop()


def pretrain(job: Job, base: str = "full") -> None:
    """Stage 1: projector and mining modules on image-caption pairs; writes mm_projector.bin, config.json,
    pretrain.log, run.json.

    base: how the frozen language model is kept, full or fp8.
    """
    began = Start()
    began.end("imports")
    inputs = {"samples": job.samples, **job.base.files()}
    hashes = hashed(inputs)
    began.end("checksums")
    distributed.start()
    model, device, dtype = prepare(job, job.scale.pretrain)
    if base == "fp8":
        fp8.convert(model)
    began.end("model")
    parameters = train_only(model, lambda name: any(part in name for part in TRAINED_NAMES))

    def save(trained: MGMForCausalLM) -> list[Path]:
        save_projector(trained.to(dtype), job.output / "mm_projector.bin")
        write_json(job.output / "config.json", trained.mgm.to_json())
        return [job.output / "mm_projector.bin", job.output / "config.json"]

    template = job.scale.caption_template
    settings = {"base": base}
    training = Training(
        "pretrain", job.scale.pretrain, inputs, hashes, settings, save, began, template=template
    )
    run_stage(job, training, model, parameters, device)


def finetune(job: Job, projector: Path, lora: Lora | None) -> None:
    """Stage 2 on the fixed instruction data, projector included: with LoRA (division `open`), or without one
    the whole language model (`closed`), which knows the plain training alone.

    projector: mm_projector.bin of stage 1. Writes the kit's files, run.json, and the log under both of the
    kit's names.
    """
    began = Start()
    began.end("imports")
    division = "open" if lora else "closed"
    if job.strategy and not lora:
        raise UserError(f"the strategy {job.strategy} is for the division open: closed is the kit's training")
    stage, base = job.scale.finetune[division], job.base.files()
    inputs = {"samples": job.samples, "projector": projector, **base}
    if job.teacher:
        inputs["teacher"] = job.teacher / "merge.json"
    hashes = hashed(inputs)
    assert_pretrained(projector, base, hashes)
    began.end("checksums")
    distributed.start()
    nf4 = lora is not None and lora.base == "nf4"
    model, device, dtype = prepare(job, stage, on_host=nf4)
    load_projector(model, projector, dtype)
    masters = lora is None and device.type == "cuda"
    if job.deepspeed and not masters:
        raise UserError(
            "--deepspeed is for the full finetuning (--division closed) on a GPU: nothing else uses it"
        )
    settings: dict[str, Any] = {"division": division}
    if lora:
        settings["lora"] = asdict(lora)
        if nf4:
            from toolkit.train.nf4 import quantize

            quantize(model, device)
            model.to(device)
        attach(model, lora.rank, lora.alpha, lora.dropout, job.seed)
        if lora.base == "fp8":
            fp8.convert(model)
        names = ("lora_", *TRAINED_NAMES)
        parameters = train_only(model, lambda name: any(part in name for part in names))
    else:
        parameters = train_only(model, lambda name: "vision_tower" not in name, float32=not masters)
    began.end("model")

    def save(trained: MGMForCausalLM) -> list[Path]:
        second_log = job.output / "finetuning.log"  # the kit's script and its README disagree on the name
        with atomic(second_log) as temporary:
            temporary.write_bytes((job.output / "finetune.log").read_bytes())
        if lora:
            write_json(job.output / "config.json", trained.mgm.to_json())
            adapter = save_adapter(trained, job.output, relative(job.base.llm))
            return [*adapter, job.output / "config.json", second_log]
        tokenizer = load_tokenizer(job.base.llm, job.scale.model_max_length)
        save_checkpoint(trained.to(dtype), job.output, tokenizer)
        return [*checkpoint_files(job.output), second_log]

    training = Training("finetune", stage, inputs, hashes, settings, save, began)
    run_stage(job, training, model, parameters, device)
