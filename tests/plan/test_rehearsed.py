"""What a rehearsal measured takes the place of the shipped table."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit import config
from toolkit.doctor import facts
from toolkit.doctor.facts import GPU
from toolkit.errors import UserError
from toolkit.plan import cards, predict, rehearsed, show, work
from toolkit.train.memory import GIB

ROOT = Path(__file__).parents[2]
HERE = GPU("NVIDIA Z1", "580.82", 9.0, 24 * GIB, 24 * GIB)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project's folder in which a rehearsal ran: pretraining in steps of 8 s, LoRA of 4 s."""
    for folder in ("solution", "workflow"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for run, seconds in (("Pretrain", 8.0), ("Finetune", 4.0)):
        for name in ("baseline", "synth"):
            folder = Path(f"output/training_dirs/MGM-2B-{run}-{name}")
            folder.mkdir(parents=True)
            lines = [{"seconds": 10.0}, {"seconds": 20.0, "step_seconds": seconds}]
            (folder / "monitor.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def rehearsal():
    settings = config.read(rehearsed.REHEARSAL)
    return predict.predict(settings, work.of(settings), cards.card("h100"), 1)


@pytest.fixture
def seconds(rehearsal):
    """A minute for each job, five for a training."""
    training = {each.job.name for each in rehearsal.predictions if each.job.rule in predict.TRAINING}
    return {each.job.name: 300.0 if each.job.name in training else 60.0 for each in rehearsal.predictions}


def machine(monkeypatch, memory: int, disk: int) -> None:
    """This machine's host memory and free disk, GiB."""
    monkeypatch.setattr(facts, "host_memory", lambda: (memory * GIB, memory * GIB, 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=disk * GIB))


def test_rates_and_starts_by_hand(rehearsal, seconds):
    here = rehearsed.card(cards.card("h100"), rehearsal, seconds)
    assert here.rates["pretrain"].value == 256 / 8.0
    assert here.rates["lora"].value == 128 / 4.0
    # what was not measured, by what pretraining is to the table's
    assert here.rates["answers"].value == pytest.approx(99.4 * 32 / 75.3)
    # five steps of pretraining at the most, of 300 s; copies of one rule on the average
    steps = [each.job.amounts["pretrain"] for each in rehearsal.predictions if each.job.rule == "pretrain"]
    assert here.starts["pretrain"] == pytest.approx(300 - sum(steps) / 2 / 32)
    assert here.starts["merge"] == 60
    # a random model takes its time, which says nothing about a download
    assert here.starts["download"] < 60


def test_the_sentence(seconds, monkeypatch):
    machine(monkeypatch, memory=128, disk=500)
    (sentence,) = rehearsed.forecast(cards.card("h100"), HERE, seconds)
    entry = config.read(ROOT / "workflow/config/baseline_10k.yaml")
    rehearsal = predict.predict(
        config.read(rehearsed.REHEARSAL), work.of(config.read(rehearsed.REHEARSAL)), cards.card("h100"), 1
    )
    here = rehearsed.card(cards.card("h100"), rehearsal, seconds)
    span = show.span(predict.predict(entry, work.of(entry), here, 1))
    assert sentence.startswith(f"this machine can do it: baseline_10k in {span}, track_200k in ")


def test_what_this_machine_cannot_do(seconds, monkeypatch):
    machine(monkeypatch, memory=32, disk=500)
    can, cannot = rehearsed.forecast(cards.card("h100"), HERE, seconds)
    assert can.startswith("this machine can do it: baseline_10k in ") and "track_200k" not in can
    assert cannot == "it cannot do track_200k: it needs 38 GiB of host memory, 32 are there"

    machine(monkeypatch, memory=128, disk=20)
    small = GPU("NVIDIA Z1", "580.82", 9.0, 16 * GIB, 16 * GIB)
    done = rehearsed.forecast(cards.card("h100"), small, seconds)
    assert done[0] == "it cannot do baseline_10k: it needs 36 GiB on the disk, 20 are free"
    assert done[1].startswith("it cannot do track_200k: finetune does not fit: ")


def test_an_unfinished_rehearsal(rehearsal, seconds):
    del seconds["validate"]
    with pytest.raises(UserError, match="the rehearsal has not run validate: run `make rehearsal` first"):
        rehearsed.card(cards.card("h100"), rehearsal, seconds)
    seconds["validate"] = 1.0
    Path("output/training_dirs/MGM-2B-Pretrain-synth/monitor.jsonl").write_text("")
    with pytest.raises(UserError, match=r"monitor\.jsonl has no step_seconds"):
        rehearsed.card(cards.card("h100"), rehearsal, seconds)
