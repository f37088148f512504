"""`python -m toolkit export` and `export push`."""

import argparse
from functools import partial
from pathlib import Path


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `export` and its verb `push`."""
    parser.add_argument("--model", type=Path, help="finetuning folder, or a full checkpoint's")
    parser.add_argument("--output", type=Path, help="the folder to write; it must not exist")
    parser.set_defaults(run=partial(export, parser))
    verbs = parser.add_subparsers(metavar="push")
    p = verbs.add_parser("push", help="upload an exported folder to a model hub", allow_abbrev=False)
    p.add_argument("folder", type=Path, help="what `export` wrote")
    p.add_argument(
        "--to", required=True, type=_repository, metavar="OWNER/NAME", help="repository of the hub"
    )
    p.add_argument("--public", action="store_true", help="for all to see (private)")
    p.add_argument(
        "--yes", action="store_true", help="upload; without it the command only says what it would"
    )
    p.set_defaults(run=push)


def export(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Write the folder and print what was proved."""
    absent = [f"--{name}" for name in ("model", "output") if not getattr(arguments, name)]
    if absent:
        parser.error(f"the following arguments are required: {', '.join(absent)}")
    from toolkit.export.export import export as exported

    proof = exported(arguments.model, arguments.output)
    print(
        f"{arguments.output}: loaded with transformers alone, {proof['answers_equal']} of "
        f"{proof['questions']} answers equal, logits differ by "
        f"{proof['max_logit_difference']:.2g} standard deviations"
    )


def push(arguments: argparse.Namespace) -> None:
    """Print what is uploaded; with --yes upload and compare it."""
    from toolkit.export import push

    export = push.checked(arguments.folder)
    print(push.summary(export, arguments.to, arguments.public))
    if not arguments.yes:
        print("nothing was sent: the same command with --yes uploads these files")
        return
    address, sent = push.push(export, arguments.to, arguments.public)
    print(
        f"{address}: {len(sent)} of {len(export.files)} files sent; the hub lists all of them with the same "
        "sizes and hashes"
    )


def _repository(value: str) -> str:
    """argparse's error for what a hub cannot have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(value)
    except HFValidationError:
        value = ""
    if "/" not in value:
        raise argparse.ArgumentTypeError("OWNER/NAME is expected, of letters, digits, - _ and .")
    return value
