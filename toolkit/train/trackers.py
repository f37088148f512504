"""The log of a training sent on, step by step, to the trackers that TOOLKIT_TRACKERS names; by default none.

    TOOLKIT_TRACKERS=tensorboard,wandb snakemake submit.zip

An environment variable, since no result depends on it: no rule runs again for it, no record knows of it. A
tracker that fails, or is not installed, is left out with one warning, and the training goes on.
"""

import importlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from toolkit.errors import UserError
from toolkit.files import read_json, write_json

VARIABLE = "TOOLKIT_TRACKERS"
PROJECT = "better-synth"
LOGIN = 60  # seconds that W&B may wait for somebody to type a key

Log = Callable[[int, dict[str, float]], None]
Tracker = tuple[Log, Callable[[], None]]  # what takes a step's line, and what ends the run


class Trackers:
    """The trackers of one training, as a context. folder: the training's. settings: shown beside the run.
    lines: of the steps that an interrupted run has done; what a tracker knows of them is not sent again."""

    def __init__(self, folder: Path, settings: dict[str, Any], lines: list[dict[str, float]]) -> None:
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(re.findall(r"[^\s,]+", os.environ.get(VARIABLE, ""))):
            with self._excused(name):
                if name not in KNOWN:
                    raise UserError(f"{VARIABLE} knows {', '.join(KNOWN)}")
                self._open[name] = KNOWN[name](name, folder, settings, resumed=bool(lines))
        for step, line in enumerate(lines, start=1):
            self.log(step, line)

    def log(self, step: int, line: dict[str, float]) -> None:
        """Send on the line of `step`, counted from 1."""
        for name, (log, _) in [*self._open.items()]:
            with self._excused(name):
                log(step, line)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, (_, finish) in [*self._open.items()]:
            with self._excused(name):
                finish()

    @contextmanager
    def _excused(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: {name} tracks this training no further: {reason}", file=sys.stderr, flush=True)


def _tensorboard(_: str, folder: Path, settings: dict[str, Any], *, resumed: bool) -> Tracker:
    """Event files in the training's folder. Readers drop what lies there already, and all steps are sent
    again: the file of a run that was killed may lack its last ones."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0)
    writer.add_text("settings", "\n".join(f"- {key}: {value}" for key, value in settings.items()), 0)

    def log(step: int, line: dict[str, float]) -> None:
        for key, value in line.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def _service(name: str, folder: Path, settings: dict[str, Any], *, resumed: bool) -> Tracker:
    """W&B, or trackio, which has its interface. Which run this is and the last step sent stand in the
    training's folder: a service keeps what it was told, so a resumed training goes on behind that."""
    module = importlib.import_module(name)
    state = folder / f"{name}.json"
    run, sent = (_kept(state) if resumed else None) or (secrets.token_hex(4), 0)
    own = {"name": f"{folder.name}-{run}", "resume": "allow", "config": settings}
    if name == "wandb":
        # its own copy of what is printed would go out too, with paths of this machine
        quiet = module.Settings(console="off", login_timeout=LOGIN)
        own |= {"id": own["name"], "dir": str(folder), "settings": quiet}
    opened = module.init(project=PROJECT, **own)

    def log(step: int, line: dict[str, float]) -> None:
        nonlocal sent
        if step > sent:
            opened.log(line, step=step)
            sent = step
            write_json(state, {"run": run, "sent": sent})

    return log, opened.finish


def _kept(state: Path) -> tuple[str, int] | None:
    """The run that a service knows this training by, and the last step sent; None where that is not known."""
    try:
        kept = read_json(state)
        return kept["run"], kept["sent"]
    except (UserError, KeyError, TypeError):
        return None


KNOWN = {"tensorboard": _tensorboard, "wandb": _service, "trackio": _service}
