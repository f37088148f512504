"""Verbs of the embedded world: `python -m toolkit world build | zoo-train`."""

import argparse

from toolkit.arguments import at_least_one, output_folder, seed


def build(arguments: argparse.Namespace) -> None:
    """Write one part of the world's data."""
    from toolkit.errors import UserError
    from toolkit.world.build import build

    if arguments.output.is_dir() and any(arguments.output.iterdir()):
        raise UserError(f"{arguments.output} is not empty: choose another folder, or move it away")
    build(arguments.part, arguments.output, arguments.seed, arguments.rows, arguments.side)


def zoo_train(arguments: argparse.Namespace) -> None:
    """Train the zoo, on a GPU if there is one."""
    import torch

    from toolkit.errors import UserError
    from toolkit.world.zoo_train.run import TRAININGS, train

    models = arguments.models or list(TRAININGS)
    if unknown := set(models) - TRAININGS.keys():
        raise UserError(f"--models names {', '.join(sorted(unknown))}: choose from {', '.join(TRAININGS)}")
    train(arguments.output, tuple(models), "cuda" if torch.cuda.is_available() else "cpu")


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs."""
    p = subparsers.add_parser(
        "build", help="generate seed, instruction, evaluation or development data", allow_abbrev=False
    )
    p.add_argument("--part", choices=("seed", "instruction", "evaluation", "development"), required=True)
    p.add_argument("--seed", type=seed, required=True)
    p.add_argument("--output", type=output_folder, required=True)
    p.add_argument(
        "--rows",
        type=at_least_one,
        help="rows, or base questions of each benchmark (default: the contest-like size)",
    )
    p.add_argument("--side", type=at_least_one, help="pixels of the images' sides (default: 128)")
    p.set_defaults(run=build)
    p = subparsers.add_parser("zoo-train", help="train the tiny models", allow_abbrev=False)
    p.add_argument("--output", type=output_folder, required=True)
    p.add_argument(
        "--models", nargs="+", help="some of them (default: all; gemma, towers and captioner want a GPU)"
    )
    p.set_defaults(run=zoo_train)
