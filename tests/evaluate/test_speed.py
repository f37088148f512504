"""The benchmark of answering, on the tiny model: equal answers, rounding within its bound. And the same on a
GPU, where there is one."""

import json

import pytest
import torch

from toolkit.bench import evaluate, synthetic
from toolkit.mgm.generate import Greedy


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

    alone = answers(1, True)
    assert answers(1, False) == alone
    assert all(answers(size, True) == alone for size in (3, 16))
