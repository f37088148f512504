"""The perplexity filter: the language model's own loss, whatever stands beside a row."""

import math

import numpy as np
import pytest
import torch
from world_rows import ZOO, depends_on_its_row_alone, row, statistics

from toolkit.world.captions import caption, garble
from toolkit.world.scene import sample_scene

pytestmark = pytest.mark.usefixtures("offline")
MODEL, NAME = ZOO / "perplexity", "perplexity"


def perplexity(**arguments):
    from toolkit.data.operators.batched_perplexity_filter import BatchedPerplexityFilter

    return BatchedPerplexityFilter(hf_model=str(MODEL), rows_at_once=4, **arguments)


def captions(count: int) -> list[str]:
    random = np.random.default_rng(3)
    return [caption(sample_scene(random, "tuning"), random) for _ in range(count)]


def test_the_statistic_is_the_exponential_of_the_models_loss() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, words = AutoModelForCausalLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    texts = [*captions(5), " ".join(captions(12))]  # the last is padded further than the others
    rows = [row(text) for text in texts]
    found = statistics(perplexity(), rows, NAME)
    for text, value in zip(texts, found, strict=True):
        ids = torch.tensor([[words.bos_token_id, *words(text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            assert value == pytest.approx(math.exp(model(ids, labels=ids).loss.item()), abs=0.06)
    depends_on_its_row_alone(perplexity(), rows, NAME)
    assert statistics(perplexity(), [row("")], NAME) == [0.0]


def test_only_the_first_tokens_are_read() -> None:
    first, rest = captions(2)
    short = statistics(perplexity(longest=5), [row(first), row(f"{first} {rest}")], NAME)
    assert short[0] == short[1] != statistics(perplexity(), [row(first)], NAME)[0]


def test_a_limit_tells_captions_from_broken_text() -> None:
    random, texts = np.random.default_rng(4), captions(20)
    broken = [garble(text, random) for text in texts]
    operator = perplexity(max_ppl=30.0)
    values = statistics(operator, [row(text) for text in texts + broken], NAME)
    kept = [operator.process_single({"__dj__stats__": {NAME: value}}) for value in values]
    assert kept == [True] * 20 + [False] * 20
    assert operator._reads == "text"
