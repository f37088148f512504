"""Speed and memory of training: the trainer's own steps, planner and optimizers on synthetic samples, without
reading any data.

python -m toolkit bench train --stage pretrain --budget-gib 22
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from toolkit.arguments import Output, above_zero, at_least_one, from_zero
from toolkit.bench import flops, synthetic
from toolkit.bench.parts import Stopwatch, timed_parts
from toolkit.errors import UserError
from toolkit.files import read_json, write_json
from toolkit.mgm.accelerate import accelerate
from toolkit.mgm.device import choose_device
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.scales import load
from toolkit.train import distributed, fp8, planner, stages
from toolkit.train.dataset import Sample
from toolkit.train.memory import DEEPSPEED
from toolkit.train.step import Execution, Stepper
from toolkit.train.trainer import Plan

GIB = 2**30
WARM_UP = 3  # steps: kernels are compiled, the allocator settles
RANK, ALPHA, DROPOUT = 16, 32, 0.1  # of LoRA, the command line's defaults


class Result(BaseModel):
    """What one benchmark found.

    gpus: or processes on the CPU; speedup: samples a second of these over those of one, where that was asked
    for. Memory and shares are the first GPU's. samples: of an optimizer step. length: tokens of a sample with
    its image's, `labelled` of them with a label. rows: of a forward pass. checkpointed: decoder layers.
    seconds: of each timed step, samples_per_second and tokens_per_second: of their median. Memory: the peak
    over warm-up and timed steps, GiB. flops: of a sample, by part and direction; recomputed: beside them, by
    checkpointing. matrix_flops: operations a second in a matrix product, measured (flops.peak); utilisation:
    share of these that the model's own operations reach. shares: of a step, by part.
    """

    model_config = ConfigDict(extra="forbid")
    stage: str
    size: str
    base: str
    device: str
    torch: str
    gpus: int
    speedup: float | None = None
    budget_gib: float | None
    samples: int
    length: int
    labelled: int
    rows: int
    checkpointed: int
    seconds: list[float]
    samples_per_second: float
    tokens_per_second: float
    peak_allocated_gib: float | None
    peak_reserved_gib: float | None
    flops: dict[str, dict[str, float]]
    recomputed: float
    matrix_flops: float
    utilisation: float
    shares: dict[str, float]
    losses: list[float]


def trained(model: MGMForCausalLM, stage: str, *, float32: bool = True) -> dict[str, torch.nn.Parameter]:
    """What the stage trains, as in toolkit/train/stages.py."""
    from toolkit.train.lora import attach

    if stage == "full":
        return stages.train_only(model, lambda name: "vision_tower" not in name, float32=float32)
    if stage == "lora":
        attach(model, RANK, ALPHA, DROPOUT, synthetic.SEED)
    return stages.train_only(
        model, lambda name: "lora_" in name or any(part in name for part in TRAINED_NAMES)
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print one row, write everything to --json; with several GPUs, one alone before. Returns the
    exit status."""
    if arguments.gpus > 1 and not distributed.launched():
        return compare(arguments)
    device = distributed.device() if distributed.world_size() > 1 else choose_device()
    if device.type == "cpu" and arguments.budget_gib:
        raise UserError("--budget-gib limits a GPU's memory and there is none")
    if arguments.gpus < 1:
        raise UserError("--gpus is a number from 1")
    if arguments.base == "nf4" and arguments.stage != "lora":
        raise UserError("--base nf4 goes with --stage lora: only frozen weights can be kept in 4 bits")
    if arguments.base == "fp8" and arguments.stage == "full":
        raise UserError("--base fp8 goes with --stage pretrain or lora: full trains what it would round")
    if arguments.deepspeed and (arguments.stage != "full" or device.type == "cpu"):
        raise UserError("--deepspeed goes with --stage full on a GPU: nothing else uses it")
    if arguments.checkpointed is not None and arguments.micro_batch is None:
        raise UserError("--checkpointed goes with --micro-batch: otherwise both are chosen")
    distributed.start()
    try:
        result = measure(arguments, device)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"a step does not fit: {str(error).splitlines()[0]}") from None
    finally:
        distributed.stop()
    if distributed.rank() == 0:
        print(row(result), flush=True)
        if arguments.json:
            write_json(arguments.json, result.model_dump())
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """The same work on one GPU, then on all that are asked for; prints both rows and the ratio. Returns the
    exit status."""
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        result_file = Path(folder) / "result.json"
        for processes in (1, arguments.gpus):
            if status := distributed.launch(processes, [*sys.argv[1:], "--json", str(result_file)]):
                return status
            result = Result.model_validate(read_json(result_file))
            rates.append(result.samples_per_second)
    result.speedup = rates[1] / rates[0]
    print(f"{result.gpus} GPUs against one: {result.speedup:.2f} times the samples/s")
    if arguments.json:
        write_json(arguments.json, result.model_dump())
    return 0


def assemble(a: argparse.Namespace, device: torch.device) -> tuple[str, float, Plan, list[Sample], Stepper]:
    """(size, rate of a matrix product, plan, this process's samples of a step, the stepper) as a training of
    these numbers has them."""
    size = a.size or ("2B" if device.type == "cuda" else "tiny")
    scale = load("tiny" if size.startswith("tiny") else "baseline_10k")
    by_name = {"pretrain": scale.pretrain, "lora": scale.finetune["open"], "full": scale.finetune["closed"]}
    numbers = by_name[a.stage]
    # a group for every process, as the tiny scale has not
    per_process = max(1, numbers.global_batch // distributed.world_size())
    numbers = numbers.model_copy(update={"micro_batch": min(numbers.micro_batch, per_process)})
    plan = Plan.of(numbers, numbers.global_batch * (WARM_UP + a.steps + 1), synthetic.SEED)
    # of what the allocator may reserve, less may be allocated: some of it fragments
    limit = int(a.budget_gib * GIB) if a.budget_gib else None
    budget = int(limit * (1 - planner.RESERVE)) if limit else None
    cuda = device.type == "cuda"
    stages.same_bits(device)
    matrix = flops.peak(device)

    model = synthetic.model(size, torch.bfloat16 if cuda else torch.float32, device)
    samples = synthetic.samples(a.stage, numbers.global_batch, model.mgm, synthetic.SEED)[plan.share()]
    if a.base == "nf4":
        from toolkit.train.nf4 import quantize

        quantize(model, device)
    if (
        limit
    ):  # of the training: the random weights were made whole, a checkpoint's are quantised as they are read
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(
            limit / torch.cuda.get_device_properties(device).total_memory
        )
    parameters = trained(model, a.stage, float32=a.stage != "full" or not cuda)
    if a.base == "fp8":
        fp8.convert(model)
    optimizer = stages.optimizer_for(model, parameters, plan, device, budget, deepspeed=a.deepspeed)
    length = planner.length(model, samples[0])
    stepper = Stepper(
        model.train(),
        optimizer,
        Execution(length * (a.micro_batch or plan.micro_batch), a.checkpointed or 0),
        device,
    )
    if cuda:
        accelerate(model)
        if a.micro_batch is None:
            stepper.execution = planner.plan(stepper, samples[:2], planner.budget(budget))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return size, matrix, plan, samples, stepper


def measure(a: argparse.Namespace, device: torch.device) -> Result:
    """Warm up, time the steps, then one more step by parts."""
    size, matrix, plan, samples, stepper = assemble(a, device)
    model, optimizer, processes = stepper.model, stepper.optimizer, distributed.world_size()

    def step(number: int) -> float:
        loss = stepper.run(samples, plan.accumulation, plan.micro_batch)
        optimizer.step(plan.rate(number))
        return distributed.total(loss).item()

    losses, seconds = [], []
    for number in range(WARM_UP + a.steps):
        flops.synchronize(device)
        distributed.barrier()
        start = time.perf_counter()
        losses.append(step(number))
        flops.synchronize(device)
        seconds.append(time.perf_counter() - start)
    peaks = (
        (torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB)
        if device.type == "cuda"
        else (None, None)
    )
    watch = Stopwatch(device)
    with timed_parts(watch, model, optimizer):
        watch.wrapped("rest", step)(WARM_UP + a.steps)
    if not all(map(math.isfinite, losses)):
        raise UserError(f"the loss is not finite: {losses}")

    text, labelled = synthetic.TEXT[a.stage]
    length = flops.image_tokens(model.mgm) + text
    parts = flops.sample(model.mgm, a.stage, text, labelled, RANK)
    rows = max(1, stepper.execution.pass_tokens // length)
    rows = math.ceil(len(samples) / math.ceil(len(samples) / rows))  # passes are made equal
    step_samples = plan.micro_batch * plan.accumulation
    rate = step_samples / statistics.median(seconds[WARM_UP:])
    return Result(
        stage=a.stage,
        size=size,
        base=a.base,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        torch=torch.__version__,
        gpus=processes,
        budget_gib=a.budget_gib,
        samples=step_samples,
        length=length,
        labelled=labelled,
        rows=rows,
        checkpointed=stepper.execution.checkpointed,
        seconds=seconds[WARM_UP:],
        samples_per_second=rate,
        tokens_per_second=rate * length,
        peak_allocated_gib=peaks[0],
        peak_reserved_gib=peaks[1],
        flops={name: {"forward": part.forward, "backward": part.backward} for name, part in parts.items()},
        recomputed=flops.recomputed(model.mgm, a.stage, text, stepper.execution.checkpointed, RANK),
        matrix_flops=matrix,
        utilisation=rate * sum(part.total for part in parts.values()) / (matrix * processes),
        shares=watch.shares(),
        losses=losses,
    )


def row(result: Result) -> str:
    """A table of one row, Markdown, and the parts of a step below it."""
    r = result
    memory = (
        "-" if r.peak_allocated_gib is None else f"{r.peak_allocated_gib:.1f} / {r.peak_reserved_gib:.1f} GiB"
    )
    cells = {
        "work": f"{r.stage}, {r.size}" + (f", {r.base} base" if r.base != "full" else ""),
        "device": f"{r.gpus} x {r.device}" if r.gpus > 1 else r.device,
        "rows a pass x tokens": f"{r.rows} x {r.length}",
        "layers checkpointed": r.checkpointed,
        "samples/s": f"{r.samples_per_second:.1f}",
        "tokens/s": f"{r.tokens_per_second:.0f}",
        "peak allocated / reserved": memory,
        "utilisation": f"{100 * r.utilisation:.0f} % of {r.matrix_flops / 1e12:.3g} TFLOP/s",
    }
    table = [list(cells), ["---"] * len(cells), [str(value) for value in cells.values()]]
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in r.shares.items())
    return "\n".join([*(f"| {' | '.join(line)} |" for line in table), "", f"of a step: {shares}"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--stage",
        choices=tuple(synthetic.TEXT),
        required=True,
        help="lora and full are the two divisions of finetuning",
    )
    parser.add_argument(
        "--size",
        choices=tuple(synthetic.CONFIGS),
        help="of the model; by default 2B on a GPU, tiny on the CPU",
    )
    parser.add_argument(
        "--base",
        choices=("full", "nf4", "fp8"),
        default="full",
        help="the frozen decoder: as it is (default), in 4 bits under LoRA, or in 8 bits",
    )
    parser.add_argument(
        "--deepspeed",
        choices=DEEPSPEED,
        help="with --stage full: the kit's setting of DeepSpeed in place of the optimizer chosen",
    )
    parser.add_argument("--budget-gib", type=above_zero, help="most GPU memory; by default all that is free")
    parser.add_argument(
        "--micro-batch",
        type=at_least_one,
        help="samples a forward pass; by default as many as fit, checkpointing chosen with them",
    )
    parser.add_argument(
        "--checkpointed",
        type=from_zero,
        help="decoder layers with gradient checkpointing (default 0 with --micro-batch)",
    )
    parser.add_argument(
        "--gpus",
        type=at_least_one,
        default=1,
        help="GPUs, a process each; more than one are compared with one",
    )
    parser.add_argument(
        "--steps",
        type=at_least_one,
        default=10,
        help="timed optimizer steps, of which the median counts (default 10)",
    )
    parser.add_argument("--json", type=Output, help="where to write everything that was found")
