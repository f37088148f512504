"""Who proposes: the same results give the same proposals, and what was learnt is used."""

from pathlib import Path

import numpy
import pytest

from toolkit.config import Search
from toolkit.errors import UserError
from toolkit.search import propose as proposing
from toolkit.search import space
from toolkit.search.proposal import Proposal, read_round, write_round
from toolkit.search.propose import finals, propose, score
from toolkit.search.select import control, select
from toolkit.search.space import Space

pytest.importorskip("optuna", reason="needs `make setup EXTRAS=search`")
ROOT = Path(__file__).parents[2]
SPACE = Space(
    [
        {"text_length_filter": {"min_len": {"range": [0, 50]}, "max_len": {"range": [0, 50]}}},
        {"optional": [{"words_num_filter": {"min_num": {"range": [0, 9]}}}]},
        {"choose": [[], [{"repeat_mapper": {"times": 2}}], [{"repeat_mapper": {"times": 3}}]]},
    ]
)
SEARCH = Search(development="world-development", rounds=4, trials=3, finalists=2, repeats=2)


def accuracy(proposal) -> float:
    """A closed form with its best at 30, 10, the optional step and the second alternative."""
    steps = {name: arguments for step in proposal.process for name, arguments in step.items()}
    if not steps:
        return 10.0
    length = steps["text_length_filter"]
    distance = abs(length["min_len"] - 30) + abs(length["max_len"] - 10)
    extra = ("words_num_filter" in steps) + (steps.get("repeat_mapper") == {"times": 2})
    return 50.0 - distance / 2 + 5 * extra


def result(proposal) -> dict:
    value = accuracy(proposal)
    return {
        "accuracies": {"textvqa": value, "mmbench": value},
        "kept": 5,
        "rows": 4,
        "seconds": 2.0,
        "seconds_of": {"data": 0.5, "training": 1.0, "answers": 0.5},
    }


def searched(search: Search, rounds: int | None = None, begun: list | None = None) -> tuple[list, dict]:
    """Rounds and results of a search, continued from the rounds that were `begun`."""
    proposed = list(begun or [])
    results = {each.key: result(each) for proposals in proposed for each in proposals}
    while len(proposed) < (search.rounds if rounds is None else rounds):
        proposed.append(propose(SPACE, search, proposed, results))
        results |= {each.key: result(each) for each in proposed[-1]}
    return proposed, results


def test_a_continued_search_ends_in_the_same_winner(tmp_path):
    """Killed after the second round and read back from its files."""
    rounds, results = searched(SEARCH)
    begun = []
    for number, proposals in enumerate(searched(SEARCH, 2)[0]):
        write_round(tmp_path / f"round-{number}.json", proposals)
        begun.append(read_round(tmp_path / f"round-{number}.json"))
    continued, again = searched(SEARCH, begun=begun)
    assert continued == rounds and again == results
    last = finals(SEARCH, rounds, results)
    results |= {each.key: result(each) for each in last}
    record = select([*rounds, last], results, SEARCH)
    assert record["winner"]["process"] in [each.process for each in last[2:]]
    assert record == select([*continued, finals(SEARCH, continued, again)], results, SEARCH)
    assert control(record) == [{"random_selector": {"select_ratio": 1.0, "select_num": 4}}]
    assert len(record["trials"]) == 12 and record["seconds"] == 2.0 * (13 + 6)


def test_another_seed_and_another_sampler_propose_otherwise():
    first = searched(SEARCH, 1)[0]
    assert first != searched(SEARCH.model_copy(update={"seed": 1}), 1)[0]
    assert searched(SEARCH, 2)[0][:1] == first


def test_no_recipe_is_proposed_twice_and_a_small_space_ends():
    narrow = Space([{"optional": [{"repeat_mapper": {"times": {"range": [2, 4]}}}]}])
    proposed = propose(narrow, SEARCH, [], {})
    results = {each.key: result_of_any() for each in proposed}
    rounds = [proposed]
    with pytest.raises(UserError, match="the space holds no further recipe"):
        for _ in range(5):
            rounds.append(propose(narrow, SEARCH, rounds, results))
            results |= {each.key: result_of_any() for each in rounds[-1]}
    recipes = [each.recipe for proposals in rounds for each in proposals]
    assert len(recipes) == len(set(recipes)) == 4


def result_of_any() -> dict:
    return {"accuracies": {"textvqa": 1.0}}


def test_equal_trainings_have_equal_keys():
    first = proposing.raw_data(SEARCH)
    assert first.key == Proposal([], {"any": 1}, first.rows, first.instructions, first.seed).key
    assert first.key != Proposal([], None, first.rows, first.instructions, 5).key


def test_parzen_estimators_beat_chance():
    """Mean of the best after 40 proposals, over five seeds."""

    def best(sampler: str) -> float:
        searches = [
            SEARCH.model_copy(update={"sampler": sampler, "seed": seed, "rounds": 10, "trials": 4})
            for seed in range(5)
        ]
        runs = [searched(search)[1].values() for search in searches]
        return float(numpy.mean([max(own["accuracies"]["mmbench"] for own in run) for run in runs]))

    assert best("tpe") > best("random") + 1


def test_the_score_is_the_mean_ratio_to_the_raw_data():
    raw = {"accuracies": {"textvqa": 20.0, "mmbench": 0.0}}
    assert score({"accuracies": {"textvqa": 30.0, "mmbench": 4.0}}, raw) == pytest.approx((1.5 + 4) / 2)


def test_the_finals_are_the_best_at_full_size_with_further_seeds():
    rounds, results = searched(SEARCH)
    last = finals(SEARCH, rounds, results)
    assert [each.process for each in last[:2]] == [[], []] and {each.rows for each in last} == {None}
    assert [each.seed for each in last] == [1, 2] * 3
    ranked = sorted(
        (each for proposals in rounds for each in proposals if each.decided), key=accuracy, reverse=True
    )
    assert [accuracy(each) for each in last[2::2]] == [accuracy(each) for each in ranked[:2]]


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match="make setup EXTRAS=search"):
        propose(SPACE, SEARCH, [], {})


def test_the_shipped_space_can_be_proposed_from_and_told():
    shipped = space.read(ROOT / "solution/search/space.yaml")
    rounds = [propose(shipped, SEARCH, [], {})]
    results = {
        each.key: {"accuracies": {"textvqa": 9.0 + n, "mmbench": 9.0}} for n, each in enumerate(rounds[0])
    }
    assert len(propose(shipped, SEARCH, rounds, results)) == 3
