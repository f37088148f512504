"""Questions shared out among processes: the bytes of one process, and the death of one is a sentence."""

import os
from collections import Counter

import pytest

from toolkit.__main__ import main
from toolkit.benchmarks.questions import Question
from toolkit.evaluate import shards


@pytest.fixture
def three(monkeypatch, answerer):
    """Three devices, and answers that say which one gave them."""

    def stream(self, messages, names, load, limit):
        for number in reversed(range(len(messages))):
            yield number, f"{names[number]} by {os.environ['CUDA_VISIBLE_DEVICES']}"

    monkeypatch.setattr(shards, "_devices", lambda gpus: ["4", "5", "7"][:gpus])
    monkeypatch.setattr(answerer, "stream", stream)


def test_the_files_are_those_of_one_process(textvqa, tmp_path, answerer, monkeypatch):
    monkeypatch.setattr(shards, "_devices", lambda gpus: ["0"] * gpus)
    for gpus in ("1", "2", "3"):
        assert main([*textvqa, "--gpus", gpus, "--output", str(tmp_path / gpus)]) == 0
    for name in ("bm1.jsonl", "control.jsonl", "score.json"):
        assert len({(tmp_path / gpus / name).read_bytes() for gpus in ("1", "2", "3")}) == 1, name


def test_each_process_has_a_gpu_of_its_own_and_an_image_one_process(three, tmp_path):
    questions = [Question({"question_id": n}, "what?", f"i{n // 2}") for n in range(12)]
    settings = shards.Settings(tmp_path, 4, 8, lambda question: None)
    with shards.answers(settings, 3) as model:
        given = dict(model.stream(questions))
        again = dict(model.stream(questions[:2]))
    assert sorted(given) == list(range(12))
    images = Counter(tuple(given[number].split(" by ")) for number in range(12))
    assert len({image for image, _ in images}) == len(images) == 6  # no image in two processes
    assert Counter(device for _, device in images) == {"4": 2, "5": 2, "7": 2}
    assert set(again) == {0, 1}


def test_a_process_that_dies_is_a_sentence_and_the_run_continues(
    textvqa, tmp_path, answerer, monkeypatch, capsys
):
    monkeypatch.setattr(shards, "_devices", lambda gpus: ["0"] * gpus)
    assert main([*textvqa, "--output", str(tmp_path / "whole")]) == 0
    monkeypatch.setenv("EVALUATE_DIES_AT", "3")
    assert main([*textvqa, "--gpus", "2", "--output", str(tmp_path / "again")]) == 1
    assert "a process that answers ended with status -9" in capsys.readouterr().err
    assert (tmp_path / "again/bm1.jsonl.partial").stat().st_size
    monkeypatch.delenv("EVALUATE_DIES_AT")
    assert main([*textvqa, "--gpus", "2", "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/bm1.jsonl").read_bytes() == (tmp_path / "whole/bm1.jsonl").read_bytes()


def test_more_gpus_than_there_are(textvqa, tmp_path, answerer, capsys):
    assert main([*textvqa, "--gpus", "64", "--output", str(tmp_path / "out")]) == 1
    assert "--gpus asks for 64, and this machine has" in capsys.readouterr().err
