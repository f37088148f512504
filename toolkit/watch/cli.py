"""`python -m toolkit watch`: a run of Snakemake in a terminal, while it goes on or afterwards."""

import argparse
import time
from contextlib import chdir, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import UserError
from toolkit.terminal import console

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY = 1.0  # seconds between two pictures


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags: this noun has no verbs."""
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="folder that Snakemake was started in (this one)"
    )
    parser.add_argument("--once", action="store_true", help="print one picture, also while the run goes on")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print one picture, or a new one every second until the run is over or Ctrl-C."""
    from rich.live import Live

    if not arguments.directory.is_dir():
        raise UserError(f"{arguments.directory} is not a folder: name the one that Snakemake was started in")
    screen = console()
    with chdir(arguments.directory), suppress(KeyboardInterrupt):  # logs name files below it; Ctrl-C ends it
        if arguments.once or not screen.is_terminal:
            screen.print(picture()[0])
            return
        with Live(console=screen, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            running = True
            while running:
                shown, running = picture()
                live.update(shown, refresh=True)
                time.sleep(EVERY if running else 0)


def picture() -> "tuple[RenderableType, bool]":
    """What is to be seen of the latest run in this folder, and whether it still goes on."""
    from toolkit.watch.estimate import outlook_of
    from toolkit.watch.frame import frame
    from toolkit.watch.run import latest

    latest_run = latest()
    if latest_run is None:
        return frame(None, "", None, time.time()), False
    state = latest_run.state
    outlook = outlook_of(tuple(latest_run.configs), latest_run.done) if state == "running" else None
    return frame(latest_run, state, outlook, time.time()), state == "running"
