"""The report of a search: what was tried, what the best promised and what it kept.

    snakemake search --configfile workflow/config/search.yaml

The winner was chosen by development questions; all that is said of it here comes from the evaluation's
questions and from trainings with seeds that the search has not used (compare.json). Differences are paired by
seed, with Student's 95 % intervals; p of the paired t-test is corrected by Holm's method for the number of
experiments. The optimism is what the development questions promised beyond that.
"""

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy
from matplotlib import style
from matplotlib.figure import Figure

from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.errors import UserError
from toolkit.evaluate.comparison import bounds
from toolkit.files import write_json, write_text
from toolkit.intervals import of_few
from toolkit.search.space import recipe_text
from toolkit.studies.learning import differences, over_seeds, short
from toolkit.svg import STYLE, save
from toolkit.tables import markdown as table

WINNER, CONTROL = "winner", "control"  # recipes of the experiments


def report(record: Mapping[str, Any], comparison: Path, recipes: Mapping[str, str]) -> dict[str, Any]:
    """The winner's confirmed score, its difference to each other experiment, and the optimism of the search.

    record: of `select`. recipes: of the experiments, by name. UserError for a comparison of one seed, or
    without the winner and its control.
    """
    names = {recipe: name for name, recipe in recipes.items()}
    if absent := [recipe for recipe in (WINNER, CONTROL) if recipe not in names]:
        raise UserError(f"no experiment has the recipe {' or '.join(absent)}: name it in the configuration")
    compared, seeds, scores = over_seeds(comparison)
    by_seed = {short(name): numpy.array(values) for name, values in scores.items()}
    own = by_seed[names[WINNER]]
    others = {name: values for name, values in by_seed.items() if name != names[WINNER]}
    tested = differences({name: (own - values).tolist() for name, values in others.items()})
    best = max(others, key=lambda name: float(others[name].mean()))
    folder = next(name for name in scores if short(name) == names[WINNER])
    confirmed = {
        "score": float(own.mean()),
        "interval": of_few(own.tolist()),
        "by_seed": own.tolist(),
        "accuracies": {
            name: content["results"][folder]["accuracy"] for name, content in compared["benchmarks"].items()
        },
    }
    winner = record["winner"]
    return {
        "seeds": seeds,
        "confirmed": confirmed,
        "promised": {
            "best_trial": max(trial["score"] for trial in record["trials"]),
            "finals": winner["score"],
            "accuracies": winner["accuracies"],
        },
        "optimism": winner["score"] - confirmed["score"],
        "experiments": {
            name: {"recipe": recipes[name], "score": float(others[name].mean()), **tested[name]}
            for name in sorted(others, key=lambda name: -float(others[name].mean()))
        },
        "best_other": best,
        "at_least_as_good": bool(own.mean() >= others[best].mean() - float(numpy.std(others[best], ddof=1))),
        "control": names[CONTROL],
        "winner": winner,
        "search": record["search"],
        "trials": record["trials"],
        "seconds": record["seconds"],
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The report as a page."""
    confirmed, promised = result["confirmed"], result["promised"]
    rows = [
        [
            name,
            f"{row['score']:.3f}",
            f"{row['difference']:+.3f} ({bounds(row['interval'], 3)})",
            f"{row['p']:.3f}",
            row["verdict"],
        ]
        for name, row in result["experiments"].items()
    ]
    compared = table(["experiment", "score", "winner's difference, 95 %", "p", "the winner is"], rows)
    measures = [
        [
            BENCHMARKS[name].measure,
            f"{promised['accuracies'][name]:.2f}",
            f"{confirmed['accuracies'][name]:.2f}",
        ]
        for name in CONTEST
    ]
    measures.append(["contest score", f"{promised['finals']:.3f}", f"{confirmed['score']:.3f}"])
    search, winner = result["search"], result["winner"]
    best = result["experiments"][result["best_other"]]
    recipe = recipe_text(WINNER, winner["process"])
    proxies = f"{search['rows']} and {search['instructions']} rows"
    return f"""# Search for a recipe

{_verdict(result)}

{compared}
Scores are the contest's, relative to the raw data; means over the training seeds
{", ".join(map(str, result["seeds"]))}, which the search has not used, on the evaluation's questions.
Differences are paired by seed, p is corrected for {len(rows)} experiments (Holm). The best other recipe is
{result["best_other"]} ({best["score"]:.3f}).

## What the development questions promised

{table(["", "development, finals", "evaluation, confirmed"], measures)}
Optimism of the search: {result["optimism"]:+.3f} (best single trial {promised["best_trial"]:.3f}).

## The winner

{winner["kept"]} rows of the seed kept, {winner["rows"]} trained on.

```yaml
{recipe}```

## The search

{len(result["trials"])} trials of at most {proxies} (sampler {search["sampler"]}, seed {search["seed"]}), then
{search["finalists"]} finalists with {search["repeats"]} trainings each at full size; {result["seconds"]:.0f}
seconds of computing in all.

![Best score so far by seconds of computing](search.svg)
"""


def _verdict(result: Mapping[str, Any]) -> str:
    control = result["experiments"][result["control"]]
    best = result["experiments"][result["best_other"]]
    score = f"{result['confirmed']['score']:.3f} ({bounds(result['confirmed']['interval'], 3)})"
    lines = [f"The winner scores {score}, confirmed."]
    for title, row in (
        ("the random control of equal size", control),
        (f"{result['best_other']}, the best other recipe", best),
    ):
        words = {
            "better": "It is better than",
            "worse": "**It is worse than",
            "undecided": "**It is not shown to be better than",
        }[row["verdict"]]
        end = "." if row["verdict"] == "better" else ".**"
        lines.append(f"{words} {title}{end}")
    if result["at_least_as_good"]:
        lines.append(f"Within one standard deviation over the seeds it is as good as {result['best_other']}.")
    else:
        lines.append(f"**It is more than one standard deviation behind {result['best_other']}.**")
    return "\n".join(lines)


def curve(record: Mapping[str, Any], path: Path) -> None:
    """The best development score so far over the seconds of computing, and every trial."""
    seconds = list(accumulate(trial["seconds"] for trial in record["trials"]))
    scores = [trial["score"] for trial in record["trials"]]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(6, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(seconds, scores, ".", color="C0", label="trials")
        axes.step(seconds, list(accumulate(scores, max)), where="post", color="C1", label="best so far")
        axes.set(xlabel="seconds of computing", ylabel="score, development questions")
        axes.legend(frameon=False, loc="lower right")
        save(figure, path)


def write(result: Mapping[str, Any], record: Mapping[str, Any], page: Path) -> None:
    """search.md, and search.json and search.svg beside it."""
    curve(record, page.with_suffix(".svg"))
    write_json(page.with_suffix(".json"), result)
    write_text(page, markdown(result))
