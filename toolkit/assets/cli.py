"""`python -m toolkit assets fetch`."""

import argparse
from pathlib import Path

from toolkit import assets, config

INPUTS = Path("input")


def fetch(arguments: argparse.Namespace) -> None:
    from toolkit.assets.fetch import Job, fetch_all

    if arguments.asset:
        names = {arguments.asset: arguments.output or INPUTS / arguments.asset}
    else:
        names = {name: INPUTS / name for name in _needed(_settings(arguments))}
    jobs = [Job(name, assets.entry(name), folder) for name, folder in names.items()]
    for name, count in fetch_all(jobs, arguments.locked).items():
        print(f"{name}: {count} files verified in {names[name]}")


def _settings(arguments: argparse.Namespace) -> config.Config:
    return config.read(arguments.config) if arguments.config else config.Config()


def _needed(settings: config.Config) -> list[str]:
    """Names of the assets that a run reads, in the order of their roles."""
    return list(dict.fromkeys(getattr(settings.assets, role) for role in config.roles(settings)))


def commands(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "fetch", help="build or download assets and verify them", allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--asset", help=f"name in {assets.NAME}")
    what.add_argument("--all", action="store_true", help="all that a run of the configuration reads")
    _config(parser)
    parser.add_argument("--output", type=Path, help="folder to fill with --asset (input/NAME)")
    parser.add_argument(
        "--locked", action="store_true", help="take only files that assets.lock has, for containers and CI"
    )
    parser.set_defaults(run=fetch)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration (the embedded world's, tiny.yaml)"
    )
