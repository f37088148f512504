"""Who proposes: a study of optuna, put together anew from the results of all earlier rounds.

Round 0 begins with the raw data, which every score is relative to. A last round trains the best recipes again
at full size with further seeds. The proposals of a round follow from the space, the settings and the results
before it alone, so a continued search proposes what it would have proposed.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.config import Search
from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.search.proposal import Proposal
from toolkit.search.space import Decision, Numbers, Pick, Space

if TYPE_CHECKING:
    import optuna

LEAST = 1.0  # percent; a benchmark that the raw data answers worse counts as this, so that ratios exist
TRIES = 200  # draws until one is new
STARTUP = 8  # proposals by chance before the sampler learns


def results_in(folder: Path, rounds: Sequence[Sequence[Proposal]]) -> dict[str, Any]:
    """The results of all proposals, by key. UserError for one that is missing."""
    keys = {each.key for proposals in rounds for each in proposals}
    return {key: read_json(folder / f"{key}.json") for key in sorted(keys)}


def accuracies(result: Mapping[str, Any]) -> dict[str, float]:
    """Percent by benchmark of a trial's result."""
    return {name: float(value) for name, value in result["accuracies"].items()}


def score(result: Mapping[str, Any], raw: Mapping[str, Any]) -> float:
    """The contest's score of a trial: the mean of the ratios to the raw data's accuracies."""
    own, base = accuracies(result), accuracies(raw)
    return sum(own[name] / max(base[name], LEAST) for name in base) / len(base)


def scored(
    rounds: Sequence[Sequence[Proposal]], results: Mapping[str, Mapping[str, Any]]
) -> list[tuple[Proposal, float]]:
    """All proposals but the raw data, with their scores, in order. results: of the trials, by key."""
    raw = results[rounds[0][0].key]
    return [
        (each, score(results[each.key], raw)) for proposals in rounds for each in proposals if each.decided
    ]


def raw_data(search: Search) -> Proposal:
    return Proposal([], None, search.rows, search.instructions, search.seed)


def propose(
    space: Space,
    search: Search,
    rounds: Sequence[Sequence[Proposal]],
    results: Mapping[str, Mapping[str, Any]],
) -> list[Proposal]:
    """The proposals of the round after `rounds`: `trials` new recipes, fewer where the space has no more.

    UserError where nothing is new at all, or optuna is not installed.
    """
    study = _study(search, len(rounds))
    earlier = scored(rounds, results) if rounds else []
    for each, value in earlier:
        study.add_trial(_told(space, each, value))
    known = {each.recipe for each, _ in earlier} | {raw_data(search).recipe}
    values = {each.recipe: value for each, value in earlier}
    new: list[Proposal] = [] if rounds else [raw_data(search)]
    wanted = search.trials + len(new)
    for _ in range(TRIES):
        if len(new) == wanted:
            break
        trial = study.ask()
        decided: dict[str, Any] = {}
        process = space.recipe(partial(_decide, trial, decided))
        candidate = Proposal(process, decided, search.rows, search.instructions, search.seed)
        if candidate.recipe in known:
            if candidate.recipe in values:
                study.tell(trial, values[candidate.recipe])
            continue
        known.add(candidate.recipe)
        new.append(candidate)
    if not new or (not rounds and len(new) == 1):
        raise UserError("the space holds no further recipe: ask for fewer rounds, or open more decisions")
    return new


def finals(
    search: Search, rounds: Sequence[Sequence[Proposal]], results: Mapping[str, Mapping[str, Any]]
) -> list[Proposal]:
    """The last round: the best recipes and the raw data, at full size, with seeds of their own."""
    ranked = sorted(scored(rounds, results), key=lambda pair: -pair[1])  # of equal ones the earlier
    best = [raw_data(search), *(each for each, _ in ranked[: search.finalists])]
    seeds = [search.seed + 1 + number for number in range(search.repeats)]
    return [Proposal(each.process, each.decided, None, None, seed) for each in best for seed in seeds]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "the search needs the Python package optuna, which is not installed: run `make setup "
            "EXTRAS=search`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _study(search: Search, number: int) -> "optuna.Study":
    """A study without trials, whose chance follows from the search's seed and the round's number."""
    optuna = _optuna()
    text = f"{search.seed} {number}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    if search.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True
        )
    return optuna.create_study(direction="maximize", sampler=sampler)


def _told(space: Space, each: Proposal, value: float) -> "optuna.trial.FrozenTrial":
    """A finished trial as optuna knows it."""
    assert each.decided is not None
    kinds = {name: _distribution(kind) for name, kind in space.decisions(each.decided).items()}
    return _optuna().create_trial(params=each.decided, distributions=kinds, value=value)


def _distribution(decision: Decision) -> Any:
    distributions = _optuna().distributions
    if isinstance(decision, Numbers):
        whole = all(isinstance(value, int) for value in (decision.least, decision.most, decision.step))
        kind = distributions.IntDistribution if whole else distributions.FloatDistribution
        return kind(decision.least, decision.most, step=decision.step)
    choices = range(decision.count) if isinstance(decision, Pick) else (False, True)
    return distributions.CategoricalDistribution(tuple(choices))


def _decide(trial: "optuna.Trial", decided: dict[str, Any], name: str, decision: Decision) -> Any:
    kind = _distribution(decision)
    distributions = _optuna().distributions
    if isinstance(kind, distributions.IntDistribution):
        value: Any = trial.suggest_int(name, kind.low, kind.high, step=kind.step)
    elif isinstance(kind, distributions.FloatDistribution):
        value = round(trial.suggest_float(name, kind.low, kind.high, step=kind.step), 10)
    else:
        value = trial.suggest_categorical(name, kind.choices)
    decided[name] = value
    return value
