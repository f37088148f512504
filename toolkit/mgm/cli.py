"""Command line of the model."""

import argparse
from pathlib import Path


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `mgm`."""
    parser = subparsers.add_parser(
        "parity", help="compare with tensors of the official code", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="directory of golden data, with meta.json")
    parser.set_defaults(run=parity)


def parity(arguments: argparse.Namespace) -> int:
    """Print one row a case; exit status 1 when any comparison is beyond its tolerance."""
    from toolkit.mgm.parity import report, run

    cases = run(arguments.folder)
    print(report(cases))
    return 1 if any(case.failed for case in cases) else 0
