"""Figures of the training: drawn from logs and monitor.jsonl, the packed one with the same bytes every
time."""

import json
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from toolkit.__main__ import main
from toolkit.contest.experiment import Experiment
from toolkit.report import figures


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The logs of two experiments; the working directory is their root."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("baseline", "synth")):
        for stage in figures.STAGES:
            folder = Path(f"output/training_dirs/MGM-Tiny-{stage.title()}-{name}")
            folder.mkdir(parents=True)
            (folder / "run.json").write_text("{}")
            lines = [{"loss": round(6 - number - step / 40, 4), "grad_norm": 1.0} for step in range(120)]
            (folder / f"{stage}.log").write_text(
                "".join(f"{line}\n" for line in [*lines, {"train_loss": 5.0}])
            )
    return [Experiment.find(Path(), name) for name in ("baseline", "synth")]


def monitor(experiment: Experiment, stage: str, **more: float) -> None:
    lines = [
        {"seconds": 10.0 * n, "steps": n, "samples_per_second": 8.0, "host_gib": 2.0} | more
        for n in range(1, 6)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (experiment.root / figures.log(experiment, stage)).with_name("monitor.jsonl").write_text(
        text + '{"seconds": 60.0, "st'
    )


def test_losses_are_the_logged_ones(trained):
    values = figures.losses(trained[1], "finetune")
    assert len(values) == 120 and values[:2] == [5.0, 4.975]


def test_drawn_means_follow_the_losses(trained):
    axes = Figure().subplots()
    figures.draw_losses(axes, trained, "pretrain")
    # a step, mean of two
    assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx([3.025, 3.0375, 2.025, 2.0375])


def test_the_packed_figure_has_the_same_bytes_again(trained, tmp_path):
    """Also after another figure was drawn, which moves matplotlib's counters, and with the user's own
    style."""
    figures.draw_losses_of_all(trained, tmp_path / "first.svg")
    monitor(trained[0], "pretrain")
    figures.draw_training(trained[0], tmp_path / "between.svg")
    with matplotlib.rc_context({"figure.dpi": 200, "font.family": "serif"}):
        figures.draw_losses_of_all(trained, tmp_path / "second.svg")
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert b"dc:date" not in first and len(first) < 200_000


def test_memory_and_speed_are_those_of_the_monitor(trained):
    monitor(trained[0], "pretrain", allocated_gib=7.0, reserved_gib=8.0, peak_gib=7.5, device_used_gib=9.0)
    lines = [{"seconds": 60.0, "host_gib": 2.0, "peak_gib": 7.5, "samples_per_second": 8.0}]
    memory, speed = Figure().subplots(1, 2)
    figures.draw_memory(memory, lines)
    figures.draw_speed(speed, lines)
    assert {line.get_label(): list(line.get_ydata()) for line in memory.lines} == {
        "GPU, allocated at most": [7.5],
        "host, with loaders": [2.0],
    }
    assert list(speed.lines[0].get_xdata()) == [1.0] and list(speed.lines[0].get_ydata()) == [8.0]


def test_training_command(trained, capsys):
    """Drawn with and without monitor.jsonl, also when its last line was cut short."""
    monitor(trained[1], "pretrain")
    assert (
        main(["report", "training", "--experiment", "synth", "--output", "output/reports/training-synth.svg"])
        == 0
    )
    assert Path("output/reports/training-synth.svg").read_text().count("<svg") == 1
    Path(figures.log(trained[1], "finetune")).unlink()
    assert main(["report", "training", "--experiment", "synth", "--output", "a.svg"]) == 1
    assert "finetune.log does not exist: train synth first" in capsys.readouterr().err
    assert not Path("a.svg").exists()
