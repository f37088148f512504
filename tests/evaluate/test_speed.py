"""The benchmark of answering, on the tiny model: equal answers, rounding within its bound. And the same on a
GPU, where there is one."""

import json
from typing import ClassVar

import pytest
import torch

from toolkit.bench import evaluate, synthetic
from toolkit.mgm import generate, slots
from toolkit.mgm.generate import Greedy
from toolkit.mgm.room import COLUMNS


def test_measure(tmp_path, capsys):
    asked = evaluate.work(synthetic.model("tiny", torch.float32, torch.device("cpu")), 6, seed=1)
    result = evaluate.measure("tiny", asked, 3, 4, 3)
    assert result.unequal == 0
    assert 0 <= result.best_two <= result.any_two < result.bound
    assert [speed.questions for speed in result.speeds] == [3, 3, 6]
    assert "unequal answers: 0 of 3" in evaluate.table(result)
    json.dumps(result.model_dump())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_and_half_precision():
    asked = evaluate.work(synthetic.model("tiny", torch.float16, torch.device("cuda")), 40, seed=1)

    def answers(size, graphs):
        greedy = Greedy(asked.model, size)
        greedy.graphs = graphs
        return dict(greedy.run(asked.prompts, asked.load, 12))

    greedy = Greedy(asked.model, 16)
    shown = dict(greedy.run(asked.prompts, asked.load, 12))
    longer = dict(greedy.run(asked.prompts, asked.load, 300))  # for which memory and graphs are made anew
    assert {number: ids[:12] for number, ids in longer.items()} == shown
    alone = answers(1, True)
    assert answers(1, False) == alone
    assert all(answers(size, True) == alone for size in (3, 16))


class Recorded:
    """Stands for `Graph` where there is no GPU: fixed inputs, and the function on them at each call."""

    made: ClassVar[list[int]] = []  # pictures of each that takes any

    def __init__(self, pool, function, *inputs):
        self.function, self.inputs = function, inputs
        self.made += [len(inputs[-1])] if inputs else []

    def __call__(self, *inputs):
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.function(*self.inputs)


def test_pictures_pass_in_powers_of_two_and_each_power_is_recorded_once(monkeypatch):
    asked = evaluate.work(synthetic.model("tiny", torch.float32, torch.device("cpu")), 27, seed=1)
    expected = dict(Greedy(asked.model, 13).run(asked.prompts, asked.load, 12))
    for module in (generate, slots):
        monkeypatch.setattr(module, "Graph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    greedy = Greedy(asked.model, 13)
    greedy.graphs = True
    assert dict(greedy.run(asked.prompts, asked.load, 12)) == expected
    assert sorted(Recorded.made) == [1, 4, 8]  # 13, 13 and 1: the first of each as it is


def test_longer_answers_take_memory_and_graphs_of_their_own(monkeypatch):
    """The memory that graphs share ends with the last of them."""
    asked = evaluate.work(synthetic.model("tiny", torch.float32, torch.device("cpu")), 6, seed=1)
    for module in (generate, slots):
        monkeypatch.setattr(module, "Graph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    greedy = Greedy(asked.model, 4)
    greedy.graphs = True

    def run(new):
        return dict(greedy.run(asked.prompts, asked.load, new)), greedy.pool, greedy.memory[4]

    room = COLUMNS - max(map(greedy.length, asked.prompts)) % COLUMNS
    first, longer, longest = run(3), run(room), run(room + 1)
    assert first[1:] == longer[1:] and longer[1] is not longest[1] and longer[2] is not longest[2]
    assert {number: ids[:3] for number, ids in longest[0].items()} == first[0]
