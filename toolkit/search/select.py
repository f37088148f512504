"""The winner of a search, and the record of how it was found.

The winner is the finalist with the best mean score over its trainings at full size. Its control has as many
rows as it kept, drawn at random.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from toolkit.config import Search
from toolkit.errors import UserError
from toolkit.search.proposal import Proposal
from toolkit.search.propose import accuracies, score, scored
from toolkit.search.space import Steps

Results = Mapping[str, Mapping[str, Any]]


def means(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of several trainings: accuracies are means."""
    each = [accuracies(result) for result in results]
    return {"accuracies": {name: float(numpy.mean([values[name] for values in each])) for name in each[0]}}


def select(rounds: Sequence[Sequence[Proposal]], results: Results, search: Search) -> dict[str, Any]:
    """The record of a search. rounds: of proposals, the finals last. UserError where no finalist keeps a
    row."""
    *earlier, final = rounds
    by_recipe: dict[str, list[Proposal]] = {}
    for each in final:
        by_recipe.setdefault(each.recipe, []).append(each)
    groups = list(by_recipe.values())
    raw = means([results[each.key] for each in groups[0]])
    finalists = [_finalist(group, results, raw) for group in groups[1:]]
    winner = max(finalists, key=lambda finalist: finalist["score"])
    if not winner["kept"]:
        raise UserError("every finalist removes all rows: open the space's limits, or search longer")
    round_of = {each.key: number for number, proposals in enumerate(earlier) for each in proposals}
    trials = [
        {"key": each.key, "round": round_of[each.key], "score": value, **_of(results[each.key])}
        for each, value in scored(earlier, results)
    ]
    keys = {each.key for proposals in rounds for each in proposals}
    return {
        "search": search.model_dump(),
        "raw": {"proxy": dict(results[rounds[0][0].key]["accuracies"]), "full": raw["accuracies"]},
        "trials": trials,
        "finalists": finalists,
        "winner": winner,
        "seconds": sum(float(results[key]["seconds"]) for key in keys),
    }


def _of(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("accuracies", "kept", "rows", "seconds")}


def _finalist(group: list[Proposal], results: Results, raw: Mapping[str, Any]) -> dict[str, Any]:
    own = [results[each.key] for each in group]
    mean = means(own)
    return {
        "process": group[0].process,
        "score": score(mean, raw),
        "accuracies": mean["accuracies"],
        "kept": own[0]["kept"],
        "rows": own[0]["rows"],
        "trainings": [{"seed": each.seed, **_of(results[each.key])} for each in group],
    }


def control(record: Mapping[str, Any]) -> Steps:
    """The random control: as many of the seed's rows as the winner trains on."""
    return [{"random_selector": {"select_ratio": 1.0, "select_num": record["winner"]["rows"]}}]
