"""Trackers are told of every step once, whatever happens to the training; and nothing happens to the
training, whatever they do."""

import ast
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from tiny_training import pretrain

from toolkit.train import trackers
from toolkit.train.trackers import Trackers
from toolkit.train.trainer import Trainer

LINES = [{"loss": 3.0 - step, "epoch": step / 4} for step in range(4)]
SERVICES = ("wandb", "trackio")


class Service:
    """A module with the interface that W&B and trackio share; it keeps what it was told."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, dict]]] = {}
        self.calls: list[dict] = []
        self.finished = 0

    def Settings(self, **given):
        return given

    def init(self, **given):
        self.calls.append(given)
        kept = self.runs.setdefault(given["name"], [])
        return SimpleNamespace(
            log=lambda line, step: kept.append((step, line)), finish=lambda: setattr(self, "finished", 1)
        )


@pytest.fixture
def services(monkeypatch):
    """Both, installed and named."""
    both = {name: Service() for name in SERVICES}
    for name, service in both.items():
        monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setenv(trackers.VARIABLE, "wandb, trackio")
    return both


def send(folder, lines, done=0) -> None:
    """What a trainer does that goes on after `done` steps."""
    folder.mkdir(exist_ok=True)
    with Trackers(folder, {"seed": 7}, lines[:done]) as opened:
        for step, line in enumerate(lines[done:], start=done + 1):
            opened.log(step, line)


def steps(service: Service) -> dict[str, list[int]]:
    return {name: [step for step, _ in told] for name, told in service.runs.items()}


def test_nothing_happens_without_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(trackers.VARIABLE, raising=False)
    send(tmp_path, LINES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_every_line_under_the_name_of_the_folder(services, tmp_path, name):
    send(tmp_path / "MGM-Tiny-Pretrain-synth", LINES)
    service = services[name]
    ((run, told),) = service.runs.items()
    assert told == list(enumerate(LINES, start=1)) and run.startswith("MGM-Tiny-Pretrain-synth-")
    assert service.calls[0]["project"] == "better-synth" and service.calls[0]["config"] == {"seed": 7}
    assert service.calls[0]["resume"] == "allow" and service.finished


@pytest.mark.parametrize("name", SERVICES)
def test_a_resumed_training_goes_on_in_its_run_and_repeats_no_step(services, tmp_path, name):
    send(tmp_path / "x", LINES[:3])  # killed after step 3, its checkpoint is of step 2
    send(tmp_path / "x", LINES, done=2)
    assert list(steps(services[name]).values()) == [[1, 2, 3, 4]]
    send(tmp_path / "x", LINES[:1])  # from the start: another run
    assert list(steps(services[name]).values()) == [[1, 2, 3, 4], [1]]


@pytest.mark.parametrize("kept", ["", "[1]", '{"run": "a"}', '{"run": "a", "se'])
def test_a_damaged_note_of_the_run_begins_another(services, tmp_path, kept):
    send(tmp_path / "x", LINES[:2])
    (tmp_path / "x/wandb.json").write_text(kept)
    send(tmp_path / "x", LINES, done=2)
    assert list(steps(services["wandb"]).values()) == [[1, 2], [1, 2, 3, 4]]


def test_an_error_is_one_warning_and_the_others_go_on(services, tmp_path, capsys):
    def init(**given):
        raise ConnectionError("no route\nto host")

    services["wandb"].init = init
    send(tmp_path, LINES)
    warned = capsys.readouterr().err
    assert warned == "warning: wandb tracks this training no further: no route to host\n"
    assert list(steps(services["trackio"]).values()) == [[1, 2, 3, 4]]


def test_an_error_in_the_middle_is_one_warning(services, tmp_path, capsys):
    def log(line, step):
        if step > 1:
            raise ValueError("full")

    services["trackio"].init = lambda **given: SimpleNamespace(log=log, finish=lambda: 1 / 0)
    send(tmp_path, LINES)
    assert capsys.readouterr().err == "warning: trackio tracks this training no further: full\n"


def test_what_is_not_known_or_not_installed_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv(trackers.VARIABLE, "tensorbord,wandb")
    send(tmp_path, LINES)
    first, second = capsys.readouterr().err.splitlines()
    assert "tensorbord" in first and "knows tensorboard, wandb, trackio" in first
    assert "wandb" in second


def read_events(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_every_step_once_also_of_a_resumed_training(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs `make setup EXTRAS=tensorboard`")
    monkeypatch.setenv(trackers.VARIABLE, "tensorboard")
    expected = {key: [(step, line[key]) for step, line in enumerate(LINES, start=1)] for key in LINES[0]}
    send(tmp_path, [{"loss": 99.0, "epoch": 0.0}] * 4)  # an earlier training
    send(tmp_path, LINES[:3])
    send(tmp_path, LINES, done=2)
    assert read_events(tmp_path) == expected


def test_a_training_gives_the_same_bytes_and_tells_every_step_once_though_killed(
    services, trained, parts, conversations, tmp_path, monkeypatch
):
    tensorboard = find_spec("tensorboard") is not None
    monkeypatch.setenv(trackers.VARIABLE, ",".join([*SERVICES, *(["tensorboard"] if tensorboard else [])]))
    step = Trainer._step

    def interrupted(self, number, *rest):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(parts, conversations, tmp_path / "pretrain")
    monkeypatch.setattr(Trainer, "_step", step)
    pretrain(parts, conversations, tmp_path / "pretrain")
    whole = trained / "pretrain"
    for path in whole.iterdir():
        if path.name != "monitor.jsonl":
            assert (tmp_path / "pretrain" / path.name).read_bytes() == path.read_bytes(), path.name
    logged = [ast.literal_eval(line) for line in (whole / "pretrain.log").read_text().splitlines()][:-1]
    for service in services.values():
        assert list(service.runs.values()) == [list(enumerate(logged, start=1))]
    if tensorboard:
        losses = [(number, pytest.approx(line["loss"])) for number, line in enumerate(logged, start=1)]
        assert read_events(tmp_path / "pretrain")["loss"] == losses
