"""`python -m toolkit config check FILE`: every problem of a configuration; `config write`: the default file
and the schemas."""

import argparse
from pathlib import Path

from toolkit import config
from toolkit.config.write import files
from toolkit.files import write_text


def check(arguments: argparse.Namespace) -> None:
    checked = config.read(arguments.file)
    print(f"{arguments.file} is in order")
    for problem in config.foreign(checked):
        print(f"but {config.REFUSED}: {problem}")


def write(arguments: argparse.Namespace) -> None:
    for path, text in files().items():
        write_text(arguments.root / path, text)
        print(path)


def commands(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "check", help="list every problem of a configuration file", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="YAML file, for example workflow/config/tiny.yaml")
    parser.set_defaults(run=check)
    parser = subparsers.add_parser(
        "write",
        help="write workflow/config/tiny.yaml and workflow/schemas/ from the models",
        allow_abbrev=False,
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    parser.set_defaults(run=write)
