"""Training as figures: losses for the packed report, the same bytes for the same logs; memory and speed
beside it.

python -m toolkit report training --experiment synth --output output/reports/training-synth.svg
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolkit.contest.experiment import Absent, Experiment
from toolkit.errors import UserError
from toolkit.files import read_open_jsonl
from toolkit.parse import Malformed, logged
from toolkit.svg import STYLE, content, save

STAGES = ("pretrain", "finetune")
PANEL = {  # texts in the reader's fonts; a page may be dark
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
    "savefig.transparent": True,
    "axes.titlelocation": "left",
}
MEMORY = {  # key of a line of monitor.jsonl: label
    "peak_gib": "GPU, allocated at most",
    "reserved_gib": "GPU, reserved",
    "device_used_gib": "GPU, in use by all",
    "host_gib": "host, with loaders",
}


def log(experiment: Experiment, stage: str) -> str:
    """The log of a stage, relative to the experiment's root."""
    return f"{experiment.pretrain if stage == 'pretrain' else experiment.finetune}/{stage}.log"


def losses(experiment: Experiment, stage: str) -> list[float]:
    """The logged loss of every step; UserError where there is no log or no step in it."""
    file = log(experiment, stage)
    try:
        lines = experiment.path(file).read_text(encoding="utf-8").splitlines()
    except Absent:
        raise UserError(f"{file} does not exist: train {experiment.name} first") from None
    try:
        step_lines = [logged(line) for line in lines if line.startswith("{'loss'")]
    except Malformed as problem:
        raise UserError(f"{file} has a line with {problem}: train {experiment.name} again") from None
    if not step_lines:
        raise UserError(f"{file} has no step: train {experiment.name} again")
    return [line["loss"] for line in step_lines]


def draw_losses(axes: Axes, experiments: list[Experiment], stage: str) -> None:
    """Every step's loss, faint, and the mean of the last fiftieth of the steps."""
    for number, experiment in enumerate(experiments):
        values = losses(experiment, stage)
        window = max(1, len(values) // 50)
        means = [
            sum(values[max(0, end - window) : end]) / min(window, end) for end in range(1, len(values) + 1)
        ]
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.6)
        axes.plot(steps, means, color=f"C{number}", linewidth=1.2, label=experiment.name)
    axes.set(title=stage, xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend(frameon=False, loc="upper right")


def draw_losses_of_all(experiments: list[Experiment], path: Path) -> None:
    """Both stages side by side, all experiments in each."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        for axes, stage in zip(figure.subplots(1, 2), STAGES, strict=True):
            draw_losses(axes, experiments, stage)
        save(figure, path)


def draw_memory(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """GiB over minutes, whatever the lines have."""
    for key, label in MEMORY.items():
        if lines and key in lines[0]:
            axes.plot(
                [line["seconds"] / 60 for line in lines],
                [line[key] for line in lines],
                linewidth=1,
                label=label,
            )
    axes.set(xlabel="minutes", ylabel="memory, GiB", ylim=(0, None))
    if lines:
        axes.legend(frameon=False, loc="center right")


def draw_speed(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """Samples a second over minutes."""
    axes.plot(
        [line["seconds"] / 60 for line in lines], [line["samples_per_second"] for line in lines], linewidth=1
    )
    axes.set(xlabel="minutes", ylabel="samples a second", ylim=(0, None))


def draw_training(experiment: Experiment, path: Path) -> None:
    """Both stages of one experiment side by side: losses; below them memory and speed from monitor.jsonl,
    empty where there is none."""
    below: tuple[Callable, ...] = (draw_memory, draw_speed)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8, 7), layout="constrained")
        for column, stage in zip(figure.subplots(1 + len(below), 2).T, STAGES, strict=True):
            draw_losses(column[0], [experiment], stage)
            lines = read_open_jsonl((experiment.root / log(experiment, stage)).with_name("monitor.jsonl"))
            for axes, draw in zip(column[1:], below, strict=True):
                draw(axes, lines)
        save(figure, path)


def panels(experiments: list[Experiment]) -> list[tuple[str, bytes]]:
    """(what it shows, SVG) of small figures for a page: losses of all experiments, then memory and speed of
    each where monitor.jsonl has them."""
    drawn: list[tuple[str, bytes]] = []

    def panel(title: str, draw: Callable[[Axes], None], width: float = 3.3) -> None:
        figure = Figure(figsize=(width, width / 1.6), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title)
        drawn.append((title, content(figure)))

    with style.context(["default", STYLE | PANEL]):
        for stage in STAGES:
            panel(f"{stage}: loss", partial(draw_losses, experiments=experiments, stage=stage), width=4.4)
        for experiment in experiments:
            for stage in STAGES:
                lines = read_open_jsonl((experiment.root / log(experiment, stage)).with_name("monitor.jsonl"))
                if lines:
                    panel(f"{experiment.name}, {stage}: memory", partial(draw_memory, lines=lines))
                    panel(f"{experiment.name}, {stage}: speed", partial(draw_speed, lines=lines))
    return drawn
