"""`python -m toolkit doctor`: its exit status, its two forms, and its quick part before a training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from machines import LAPTOP, RTX4090, SERVER, machine

from toolkit.__main__ import main
from toolkit.doctor import facts

ROOT = Path(__file__).parents[2]
BIG = "workflow/config/baseline_10k.yaml"


@pytest.fixture
def on(monkeypatch):
    """Call it with the facts of a machine to be there; the network answers."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(facts, "unreachable", lambda addresses: {})
    return lambda judged: monkeypatch.setattr(facts, "read", lambda: judged)


def test_this_machine_runs_the_embedded_world(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["doctor"]) == 0
    assert "0 failures" in capsys.readouterr().out


def test_a_machine_without_a_gpu_fails_a_full_size_configuration(capsys, on):
    on(LAPTOP)
    assert main(["doctor", "--config", BIG]) == 1
    assert "no NVIDIA GPU answers" in capsys.readouterr().out
    on(SERVER)
    assert main(["doctor", "--config", BIG]) == 0


def test_json_has_every_check(capsys, on):
    on(LAPTOP)
    assert main(["doctor", "--config", BIG, "--json"]) == 1
    judged = json.loads(capsys.readouterr().out)
    assert len(judged) == 16 and all(check.keys() == {"name", "state", "seen", "remedy"} for check in judged)
    assert {check["name"]: check["state"] for check in judged}["GPU memory"] == "failure"


def test_offline_leaves_the_network_alone(on, monkeypatch):
    on(SERVER)
    monkeypatch.setattr(facts, "unreachable", lambda addresses: pytest.fail("asked"))
    assert main(["doctor", "--config", BIG, "--offline"]) == 0


def test_names_of_strangers_do_not_steer_the_terminal(capsys, on):
    on(machine(replace(RTX4090, name="\x1b[2Jcard")))
    main(["doctor", "--config", BIG])
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed and "card" in printed


def test_an_unknown_configuration_is_one_sentence(capsys, on):
    on(SERVER)
    assert main(["doctor", "--config", "nowhere.yaml"]) == 1
    assert capsys.readouterr().err == "error: nowhere.yaml does not exist\n"


def train(stage: str, *flags: str) -> int:
    folders = [
        word for name in ("samples", "images", "llm", "clip", "convnext") for word in (f"--{name}", "none")
    ]
    scale = ["--scale", "baseline_10k", "--seed", "1", "--output", "none"]
    return main(["train", stage, *folders, *scale, *flags])


@pytest.mark.parametrize(
    ("judged", "flags", "problem"),
    [
        (LAPTOP, [], "NVIDIA driver: no NVIDIA GPU answers"),
        (machine(memory=32), ["--division", "closed"], "host memory: full with its optimizer there 37.8"),
        (machine(replace(RTX4090, free=0)), ["--division", "open"], "GPU memory: lora at least 7"),
    ],
)
def test_training_on_a_gpu_asks_before_anything_is_read(capsys, on, monkeypatch, judged, flags, problem):
    on(judged)
    more = [*flags, "--projector", "none"] if flags else []
    assert train("finetune" if flags else "pretrain", "--gpus", "1", *more) == 1
    assert f"error: this machine cannot do it, {problem}" in capsys.readouterr().err


def test_a_warning_is_said_and_training_goes_on(capsys, on):
    on(replace(machine(memory=32), available=2**30))
    assert train("pretrain", "--gpus", "1") == 1
    said = capsys.readouterr().err
    assert "host memory: " in said and "cannot do it" not in said and "error: none" in said


def test_training_on_the_cpu_asks_nothing(capsys, on, monkeypatch):
    monkeypatch.setattr(facts, "read", lambda: pytest.fail("asked"))
    assert train("pretrain") == 1
    assert "cannot do it" not in capsys.readouterr().err
