"""`python -m toolkit assets fetch | status | adopt | export`."""

import argparse
import sys
from pathlib import Path

from toolkit import assets, config
from toolkit.counted import counted
from toolkit.errors import UserError

INPUTS = Path("input")


def fetch(arguments: argparse.Namespace) -> None:
    from toolkit.assets.fetch import Job, fetch_all

    if arguments.asset and arguments.config:
        raise UserError("--config says which assets are needed, --asset names one: give one of them")
    if arguments.output and not arguments.asset:
        raise UserError("--output is the folder of one asset: name it, --asset NAME")
    if arguments.asset:
        names = {arguments.asset: arguments.output or INPUTS / arguments.asset}
    else:
        names = {name: INPUTS / name for name in config.assets_read(_settings(arguments))}
    jobs = [Job(name, assets.entry(name), folder) for name, folder in names.items()]
    for name, count in fetch_all(jobs, arguments.locked).items():
        print(f"{name}: {counted(count, 'file')} verified in {names[name]}")


def status(arguments: argparse.Namespace) -> None:
    from toolkit.assets.status import states, table

    settings = _settings(arguments)
    roles, read = dict(settings.assets), config.roles(settings)
    if settings.search:
        roles["search.development"] = settings.search.development
        read.append("search.development")
    print(table(roles, read, states(roles.values(), INPUTS)), end="")


def adopt(arguments: argparse.Namespace) -> int:
    from toolkit.assets.adopt import adopt

    done, problems = adopt(arguments.folder, INPUTS, arguments.name)
    for line in done:
        print(line)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(problems))


def export(arguments: argparse.Namespace) -> None:
    from toolkit.assets.mirror import export

    entries = {name: assets.entry(name) for name in config.assets_read(_settings(arguments))}
    counts = export(entries, INPUTS, arguments.folder)
    for name, count in counts.items():
        print(f"{name}: {counted(count, 'file')} in {arguments.folder / name}")
    if not counts:
        print("nothing to export: every asset of this configuration is made without a network")


def _settings(arguments: argparse.Namespace) -> config.Config:
    return config.read(arguments.config) if arguments.config else config.Config()


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

    parser = subparsers.add_parser(
        "status", help="what a configuration needs: size, present, locked, missing, from", allow_abbrev=False
    )
    _config(parser)
    parser.set_defaults(run=status)
    parser = subparsers.add_parser(
        "adopt", help="use what is on this machine: a kit, a hub's cache, a seed set", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="nothing in it is copied or changed")
    parser.add_argument("--name", help="what a seed set of your own shall be called (its folder's name)")
    parser.set_defaults(run=adopt)
    parser = subparsers.add_parser(
        "export", help="a mirror for machines without network (TOOLKIT_MIRROR)", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="folder that becomes the mirror")
    _config(parser)
    parser.set_defaults(run=export)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration (the embedded world's, tiny.yaml)"
    )
