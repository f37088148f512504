"""Diversity: the definitions, that the number of rows does not decide it, and intervals that hold what they
promise."""

from math import comb

import numpy
import pytest
from numpy.random import Generator, default_rng

from toolkit.data.analysis import diversity
from toolkit.data.analysis.diversity import Corpus, measures, rarefied, spread, words_of


def captions(generator: Generator, rows: int, exponent: float = 1.3) -> list[str]:
    """Captions of 9 words drawn by Zipf's law."""
    return [" ".join(f"w{word}" for word in row) for row in generator.zipf(exponent, (rows, 9))]


def whole(corpus: Corpus) -> dict[str, float]:
    return {name: measure.of(corpus, corpus.everything) for name, measure in measures(corpus).items()}


def test_words():
    assert words_of("A Dog's <b>bed</b>, 2 x 3_4 | \u72d7\u72d7 \u2014 l\u2019\u00e9t\u00e9!") == [
        "a", "dog's", "b", "bed", "b", "2", "x", "3", "4", "\u72d7\u72d7", "l\u2019\u00e9t\u00e9",
    ]  # fmt: skip


@pytest.mark.parametrize("drawn", [1, 2, 7, 12])
def test_rarefaction_is_the_hypergeometric_expectation(drawn):
    counts = numpy.array([5, 1, 3, 3])
    expected = sum(1 - comb(12 - count, drawn) / comb(12, drawn) for count in counts)
    assert rarefied(counts, drawn) == pytest.approx(expected, abs=1e-12)
    assert numpy.isnan(rarefied(counts, 13))


def test_mtld_by_hand():
    # "a b a a": after 4 words 2 of 4 are distinct; before that 1, 1 and 2/3 <= 0.72, so the factor is full at
    # the third word
    assert diversity.factor_length([0, 1, 0]) == 3
    assert diversity.factor_length([0, 1, 0, 2, 3, 2]) == 3
    # one full factor, then 4 words of which 3 are distinct: (1 - 0.75) / 0.28 of a factor
    assert diversity.factor_length([0, 1, 0, 2, 3, 4, 2]) == pytest.approx(7 / (1 + 0.25 / 0.28))
    assert numpy.isnan(diversity.factor_length([0, 1, 2]))


def test_miller_madow_comes_closer_to_the_entropy():
    counts = numpy.bincount(default_rng(0).integers(64, size=300), minlength=64)
    counts = counts[counts > 0]
    assert (
        diversity.entropy(counts) < 5.95
        and abs(diversity.miller_madow(counts) - 6) < abs(diversity.entropy(counts) - 6) / 3
    )


def test_a_tenth_of_the_rows_has_the_same_diversity_but_another_ratio():
    everything = captions(default_rng(1), 4000)
    large, small = Corpus(everything), Corpus(everything[:400])
    ratios = [
        diversity.type_token_ratio(corpus.counts("words", corpus.everything)) for corpus in (large, small)
    ]
    assert ratios[1] > 1.5 * ratios[0]
    in_large, in_small = whole(large), whole(small)
    assert {"distinct words of 1,000", "HD-D", "MTLD"} <= in_small.keys() < in_large.keys()
    for name, value in in_small.items():
        assert value == pytest.approx(in_large[name], rel=0.1), name


def test_intervals_hold_the_truth_and_a_bootstrap_would_not():
    """Among 40 data sets of one population, most intervals hold the population's value; most bootstrap means
    lie below them."""
    population = Corpus(captions(default_rng(2), 30_000))
    name = "distinct words of 1,000"
    truth = whole(population)[name]
    held, below = 0, 0
    for number in range(40):
        corpus = Corpus(captions(default_rng(100 + number), 300))
        measure = measures(corpus)[name]
        reach = spread(
            [measure.of(corpus, mask) for mask in diversity.halves([str(row) for row in range(300)])]
        )
        value = measure.of(corpus, corpus.everything)
        held += abs(value - truth) <= reach
        again = default_rng(number).integers(300, size=300)
        weights = numpy.bincount(again, minlength=300)
        counts = weights @ corpus.kinds["words"]
        below += rarefied(counts[counts > 0], 1000) < value - reach
    assert held >= 34  # 38 are expected
    assert below >= 30


def test_rows_of_one_id_stay_together():
    ids = ["a", "b", "a", "c", "b", "d"]
    masks = list(diversity.halves(ids))
    assert len(masks) == diversity.HALVES
    for mask in masks:
        assert (
            mask[0] == mask[2]
            and mask[1] == mask[4]
            and len({row_id for row_id, inside in zip(ids, mask, strict=True) if inside}) == 2
        )
    assert len({mask.tobytes() for mask in masks}) == 6  # every half of four


def test_repeated_rows_are_less_diverse_captions():
    rows = captions(default_rng(3), 500)
    once, twice = whole(Corpus(rows)), whole(Corpus(rows * 2))
    assert twice["distinct captions of 100"] < once["distinct captions of 100"]
    assert twice["distinct words of 1,000"] == pytest.approx(once["distinct words of 1,000"], rel=0.08)
