"""`python -m toolkit doctor [--config FILE] [--offline] [--json]`: one line a check, exit status 1 when
something would fail."""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

from toolkit import config
from toolkit.counted import counted
from toolkit.doctor import checks, facts, work
from toolkit.files import json_text
from toolkit.terminal import console, printable

COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags: this noun has no verbs."""
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("workflow/config/tiny.yaml"),
        help="what is to be run (%(default)s)",
    )
    parser.add_argument("--offline", action="store_true", help="do not try whether the network answers")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    asked = work.of(config.read(arguments.config))
    machine = facts.read()
    if not arguments.offline:
        machine = replace(machine, unreachable=facts.unreachable(asked.addresses))
    judged = checks.judge(machine, asked)
    if arguments.json:
        sys.stdout.write(json_text([asdict(check) for check in judged]))
    else:
        show(judged, str(arguments.config))
    return int(any(check.state == "failure" for check in judged))


def show(judged: list[checks.Check], title: str) -> None:
    """Print a table, and what it comes to."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left")
    for name in ("check", "state", "seen", "remedy"):
        table.add_column(name, overflow="fold")
    for check in judged:
        seen, remedy = (Text(printable(text)) for text in (check.seen, check.remedy))
        table.add_row(check.name, Text(check.state, COLOURS[check.state]), seen, remedy)
    counts = [sum(check.state == state for check in judged) for state in COLOURS]
    screen = console()
    screen.print(table)
    screen.print(
        f"{counts[0]} ok, {counted(counts[1], 'warning')}, {counted(counts[2], 'failure')}", highlight=False
    )
