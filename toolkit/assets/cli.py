"""`python -m toolkit assets fetch --asset NAME --output input/NAME`."""

import argparse
from pathlib import Path

from toolkit import assets


def fetch(arguments: argparse.Namespace) -> None:
    from toolkit.assets.fetch import fetch

    count = fetch(arguments.asset, assets.entry(arguments.asset), arguments.output)
    print(f"{arguments.asset}: {count} files verified in {arguments.output}")


def commands(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "fetch", help="build or download an asset and verify it", allow_abbrev=False
    )
    parser.add_argument("--asset", required=True, help=f"name in {assets.NAME}")
    parser.add_argument(
        "--output", required=True, type=Path, help="folder to fill, input/NAME for the workflow"
    )
    parser.set_defaults(run=fetch)
