"""`python -m toolkit watch`: a run of Snakemake in a terminal, while it goes on or afterwards."""

import argparse
import os
import time
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
    os.chdir(arguments.directory)  # what its log names is relative to it
    screen = console()
    if arguments.once or not screen.is_terminal:
        screen.print(picture()[0])
        return
    try:
        with Live(console=screen, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            running = True
            while running:
                shown, running = picture()
                live.update(shown, refresh=True)
                time.sleep(EVERY if running else 0)
    except KeyboardInterrupt:  # the usual way to leave
        return


def picture() -> "tuple[RenderableType, bool]":
    """What is to be seen of the latest run in this folder, and whether it still goes on."""
    from toolkit.watch.estimate import outlook_of
    from toolkit.watch.frame import frame
    from toolkit.watch.run import latest

    latest_run = latest()
    state = latest_run.state if latest_run else ""
    outlook = outlook_of(tuple(latest_run.configs), latest_run.done) if state == "running" else None
    return frame(latest_run, state, outlook, time.time()), state == "running"
