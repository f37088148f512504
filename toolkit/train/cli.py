"""Command line of training."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import scales
from toolkit.arguments import Output, above_zero, at_least_one, from_zero, output_folder, seed
from toolkit.config import STRATEGIES, Finetune, Pretrain, as_flag
from toolkit.errors import UserError
from toolkit.train.memory import DEEPSPEED

if TYPE_CHECKING:
    from toolkit.train.inputs import BaseModels
    from toolkit.train.memory import Kind
    from toolkit.train.stages import Job


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `train`."""
    first = subparsers.add_parser(
        "pretrain", help="stage 1: projector and mining modules on captions", allow_abbrev=False
    )
    second = subparsers.add_parser(
        "finetune", help="stage 2: instruction data, in full or with LoRA", allow_abbrev=False
    )
    third = subparsers.add_parser(
        "merge", help="fold the adapter into the base and prove it", allow_abbrev=False
    )
    for stage, parser in (("pretrain", first), ("finetune", second)):
        parser.add_argument("--samples", type=Path, required=True, help="LLaVA json")
        parser.add_argument(
            "--images", type=Path, required=True, help="folder that the samples' image paths start from"
        )
        parser.add_argument(
            "--scale", required=True, help=f"row of the frozen scale table: {', '.join(scales.names())}"
        )
        parser.add_argument("--seed", type=seed, required=True, help="of new modules, data order and dropout")
        parser.add_argument(
            "--gpus",
            type=from_zero,
            default=0,
            help="GPUs to train on, a process each; 0: one where there is one, else the CPU",
        )
        parser.add_argument(
            "--nodes",
            type=at_least_one,
            default=1,
            help="nodes of a Slurm job that share the GPUs evenly (%(default)s: this machine)",
        )
        parser.add_argument(
            "--budget-gib",
            type=above_zero,
            help="memory of each GPU to plan for; by default what is free, less 6 %%",
        )
        parser.add_argument(
            "--strategy",
            choices=[name for name, stages in STRATEGIES.items() if stage in stages],
            help="learning strategy, in the division open alone (the plain training)",
        )
    first.add_argument("--base", choices=("full", "fp8"), **as_flag(Pretrain, "base"))
    second.add_argument("--projector", type=Path, required=True, help="mm_projector.bin of stage 1")
    second.add_argument(
        "--division",
        choices=("open", "closed"),
        required=True,
        help="open: LoRA; closed: the kit's full finetuning",
    )
    second.add_argument("--teacher", type=Path, help="finetuning folder, for the strategy distillation")
    second.add_argument(
        "--deepspeed",
        choices=DEEPSPEED,
        help="setting of the kit's for the optimizer of the division closed (on one GPU none, on several the "
        "fastest that fits)",
    )
    second.add_argument("--base", choices=("full", "nf4", "fp8"), **as_flag(Finetune, "base"))
    second.add_argument("--lora-rank", type=at_least_one, **as_flag(Finetune, "lora_rank"))
    second.add_argument("--lora-alpha", type=at_least_one, **as_flag(Finetune, "lora_alpha"))
    second.add_argument("--lora-dropout", type=float, **as_flag(Finetune, "lora_dropout"))
    third.add_argument("--finetuned", type=Path, required=True, help="output folder of finetune")
    for parser in (first, second, third):
        parser.add_argument("--llm", type=Path, required=True, help="language model's folder")
        parser.add_argument("--clip", type=Path, required=True, help="CLIP folder")
        parser.add_argument("--convnext", type=Path, required=True, help="open_clip ConvNeXt folder")
    for parser in (first, second):
        parser.add_argument("--output", type=output_folder, required=True, help="output folder")
    third.add_argument("--output", type=Output, required=True, help="the proof, merge.json")
    first.set_defaults(run=pretrain)
    second.set_defaults(run=finetune)
    third.set_defaults(run=merge)


def _arguments() -> list[str]:
    """Those of this command but for `--nodes`, which changes no result."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--nodes")
    return parser.parse_known_args(sys.argv[1:])[1]


def _command() -> list[str]:
    return ["python", "-m", "toolkit", *_arguments()]


def _base(arguments: argparse.Namespace) -> "BaseModels":
    from toolkit.train.inputs import BaseModels

    return BaseModels(arguments.llm, arguments.clip, arguments.convnext)


def _examine(arguments: argparse.Namespace, gpus: int) -> None:
    """The quick part of `toolkit doctor` for `gpus` GPUs of this machine, before anything is loaded:
    UserError where the stage would fail."""
    from toolkit.doctor import checks, facts, work

    kind: Kind = "pretrain"
    rank = 0
    if "division" in arguments:
        kind, rank = work.finetuning(arguments.division, arguments.base), arguments.lora_rank
    asked = work.stage(arguments.scale, kind, rank, gpus, arguments.base)
    for check in checks.assert_able(facts.read(), asked):
        print(f"{check.name}: {check.seen}: {check.remedy}", file=sys.stderr, flush=True)


def _train(arguments: argparse.Namespace, stage: Callable[["Job"], None]) -> int:
    """Run a stage in this process, or in one process for each of several GPUs; returns the exit status."""
    from toolkit.train import distributed, slurm
    from toolkit.train.stages import Job

    a = arguments
    if not distributed.launched():
        per_node = slurm.processes(a.nodes, a.gpus)
        if a.gpus:
            _examine(a, per_node)
        if a.nodes > 1:
            slurm.launch(a.nodes, a.gpus, _arguments())
        if a.gpus > 1:
            return distributed.launch(a.gpus, _arguments())
    budget = a.budget_gib and int(a.budget_gib * 2**30)
    scale = scales.load(a.scale)
    job = Job(a.samples, a.images, _base(a), scale, a.seed, a.output, _command(), budget, a.strategy)
    stage(replace(job, teacher=a.teacher, deepspeed=a.deepspeed) if "teacher" in a else job)
    return 0


def pretrain(arguments: argparse.Namespace) -> int:
    """Run stage 1."""
    from toolkit.train import stages

    return _train(arguments, lambda job: stages.pretrain(job, arguments.base))


def finetune(arguments: argparse.Namespace) -> int:
    """Run stage 2."""
    from toolkit.train import stages

    a, lora = arguments, None
    if a.division == "closed" and a.base != "full":
        raise UserError(f"--base {a.base} is for LoRA (--division open): closed trains the whole model")
    if a.division == "open":
        lora = stages.Lora(a.lora_rank, a.lora_alpha, a.lora_dropout, a.base)
    return _train(a, lambda job: stages.finetune(job, a.projector, lora))


def merge(arguments: argparse.Namespace) -> None:
    """Merge and print the proof."""
    from toolkit.train.merge import merge as run

    for key, value in run(arguments.finetuned, _base(arguments), arguments.output, _command()).items():
        print(f"{key}: {value}")
