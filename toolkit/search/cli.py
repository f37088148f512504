"""Command line of the search: `search --budget 2h` runs all of it through Snakemake; the verbs are its
rules."""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from toolkit import code, config
from toolkit.arguments import Output, at_least_one, output_folder, processes
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_json, write_json, write_text
from toolkit.processes import cores

DEFAULT = Path("workflow/config/search.yaml")
TRIALS = config.SEARCHED / "trials"
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def seconds(text: str) -> int:
    """A length of time, such as 90m or 2h, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a length of time, such as 90m or 2h")
    return round(float(match[1]) * SECONDS[match[2]])


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the whole search, and the verbs."""
    parser.add_argument(
        "--budget", type=seconds, help="time for the search, such as 90m or 2h; confirming comes on top"
    )
    parser.add_argument("--config", type=Path, default=DEFAULT, help="configuration (%(default)s)")
    parser.add_argument(
        "--cores",
        type=at_least_one,
        default=cores(),
        help="trials at once (%(default)s)",
    )
    parser.set_defaults(run=budgeted)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    p = verbs.add_parser("scores", help="compute the statistics that trials share", allow_abbrev=False)
    p.add_argument("--space", type=Path, required=True, help="YAML file of the recipes to choose from")
    _settings(p)
    p.add_argument("--processes", type=processes, default=1, help="side by side (%(default)s)")
    p.add_argument("--output", type=Output, required=True, help="what was computed, JSON")
    p.set_defaults(run=scores)

    p = verbs.add_parser("propose", help="choose the recipes of the next round", allow_abbrev=False)
    p.add_argument("--space", type=Path, required=True, help="YAML file of the recipes to choose from")
    p.add_argument("--search", required=True, help="the configuration's section search, as JSON")
    p.add_argument("--rounds", type=Path, nargs="*", default=[], help="all earlier rounds, in order")
    p.add_argument("--trials", type=Path, required=True, help="folder of their results")
    p.add_argument("--final", action="store_true", help="the best, again at full size")
    p.add_argument("--output", type=Output, required=True, help="the round, JSON")
    p.set_defaults(run=propose)

    p = verbs.add_parser("trial", help="train one proposal and score it", allow_abbrev=False)
    p.add_argument("--round", type=Path, required=True, help="the round that it is of")
    p.add_argument("--key", required=True, help="of the proposal")
    p.add_argument("--questions", required=True, help="asset of the development questions")
    _settings(p)
    p.add_argument("--output", type=Output, required=True, help="the result, JSON")
    p.set_defaults(run=trial)

    p = verbs.add_parser("select", help="choose the winner and write its recipe", allow_abbrev=False)
    p.add_argument("--rounds", type=Path, nargs="+", required=True, help="all rounds, the finals last")
    p.add_argument("--trials", type=Path, required=True, help="folder of their results")
    p.add_argument("--search", required=True, help="the configuration's section search, as JSON")
    p.add_argument(
        "--output", type=output_folder, required=True, help="folder of winner.yaml, control.yaml, search.json"
    )
    p.set_defaults(run=select)

    p = verbs.add_parser(
        "report", help="what the search promised, and what was confirmed", allow_abbrev=False
    )
    p.add_argument("--record", type=Path, required=True, help="search.json of select")
    p.add_argument("--comparison", type=Path, required=True, help="compare.json over fresh seeds")
    p.add_argument("--recipes", required=True, help="of the experiments by name, as JSON")
    p.add_argument("--output", type=Output, required=True, help="search.md; .json and .svg lie beside it")
    p.set_defaults(run=report)


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--settings", required=True, help="what of the configuration decides a trial, as JSON"
    )
    parser.add_argument("--scores", type=Path, required=True, help="folder of the store of statistics")


def scores(arguments: argparse.Namespace) -> None:
    """Fill the store."""
    from toolkit.search import space
    from toolkit.search import trial as trials

    setup = trials.Setup(**json.loads(arguments.settings))
    recipes = trials.fill(
        space.read(arguments.space),
        setup,
        arguments.scores,
        arguments.output.parent / "covering",
        arguments.processes,
    )
    write_json(arguments.output, {"recipes": recipes})


def propose(arguments: argparse.Namespace) -> None:
    """Write a round's proposals."""
    from toolkit.search import propose as proposing
    from toolkit.search import space
    from toolkit.search.proposal import read_round, write_round

    search = config.Search.model_validate_json(arguments.search)
    rounds = [read_round(path) for path in arguments.rounds]
    results = proposing.results_in(arguments.trials, rounds)
    if arguments.final:
        proposals = proposing.finals(search, rounds, results)
    else:
        proposals = proposing.propose(space.read(arguments.space), search, rounds, results)
    write_round(arguments.output, proposals)


def trial(arguments: argparse.Namespace) -> None:
    """Train, answer, score."""
    from toolkit.search.proposal import read_round
    from toolkit.search.trial import Setup, run

    setup = Setup(**json.loads(arguments.settings))
    proposal = next(each for each in read_round(arguments.round) if each.key == arguments.key)
    # what another version of the code began is not continued
    version = code.digest("toolkit.search.trial")[:16]
    work = arguments.output.parent.parent / "work" / f"{arguments.key}-{version}"
    write_json(arguments.output, run(proposal, setup, arguments.questions, arguments.scores, work))


def select(arguments: argparse.Namespace) -> None:
    """Write the winner's recipe, its control's, and the record of the search."""
    from toolkit.search import propose as proposing
    from toolkit.search.proposal import read_round
    from toolkit.search.select import control
    from toolkit.search.select import select as chosen
    from toolkit.search.space import recipe_text

    rounds = [read_round(path) for path in arguments.rounds]
    search = config.Search.model_validate_json(arguments.search)
    record = chosen(rounds, proposing.results_in(arguments.trials, rounds), search)
    write_text(arguments.output / "winner.yaml", recipe_text("winner", record["winner"]["process"]))
    write_text(arguments.output / "control.yaml", recipe_text("control", control(record)))
    write_json(arguments.output / "search.json", record)


def report(arguments: argparse.Namespace) -> None:
    """Write and print the report."""
    from toolkit.search import report as reports

    record = read_json(arguments.record)
    result = reports.report(record, arguments.comparison, json.loads(arguments.recipes))
    reports.write(result, record, arguments.output)
    print(reports.markdown(result), end="")


def budgeted(arguments: argparse.Namespace) -> int:
    """Run the search with as many rounds as fit into the budget, then confirm; the status of Snakemake."""
    if arguments.budget is None:
        raise UserError("say how long to search: --budget 2h")
    from toolkit.plan.show import recorded
    from toolkit.search.proposal import read_round

    settings = config.read(arguments.config)
    if settings.search is None:
        raise UserError(f"{arguments.config} has no section search: see {DEFAULT}")
    search, cores = settings.search, max(1, arguments.cores)
    start = time.monotonic()
    print("measuring a trial: the first round", file=sys.stderr, flush=True)
    if status := _snakemake(arguments.config, cores, search.rounds, "search_first"):
        return status
    keys = [each.key for each in read_round(config.SEARCHED / "round-0.json")]
    seconds = recorded()  # of whole commands, their start included
    trials = [read_json(TRIALS / f"{key}.json") | {"seconds": seconds[f"trial/{key}"]} for key in keys]
    first = _waves(len(trials), cores) * _mean(trials)
    prepared = max(0.0, time.monotonic() - start - first)  # assets, the store of statistics
    rounds = fitting(search, trials, settings, cores, arguments.budget - prepared)
    if rounds < 1:
        raise UserError(
            f"not even one round fits into {arguments.budget / 60:.1f} min: a trial takes "
            f"{_mean(trials):.0f} s, and the finals train at full size; give more time, or --cores"
        )
    print(
        f"{counted(rounds, 'round')} of {counted(search.trials, 'trial')} fit into the budget",
        file=sys.stderr,
        flush=True,
    )
    # Not "search" at once: the trainings that confirm would take turns with the trials.
    if status := _snakemake(arguments.config, cores, rounds, str(config.SEARCHED / "winner.yaml")):
        return status
    took, budget = (f"{length / 60:.0f} min" for length in (time.monotonic() - start, arguments.budget))
    print(f"searched for {took} of {budget}; what follows confirms the winner", file=sys.stderr, flush=True)
    return _snakemake(arguments.config, cores, rounds, "search")


def fitting(
    search: config.Search, results: list[dict], settings: config.Config, cores: int, budget: float
) -> int:
    """How many rounds fit into `budget` seconds: what the first round's trials took, of which the
    raw data is one more, and for the finals as much more as they have more rows in training."""
    from toolkit import scales

    mean, training = _mean(results), _mean([result["seconds_of"] for result in results], "training")
    larger = max(1.0, scales.load(settings.scale).cap / search.rows)
    finals = _waves((search.finalists + 1) * search.repeats, cores) * (mean + training * (larger - 1))
    rest = budget - finals - mean * (_waves(search.trials + 1, cores) - _waves(search.trials, cores))
    return max(0, int(rest // (_waves(search.trials, cores) * mean)))


def _mean(results: list[dict], key: str = "seconds") -> float:
    return statistics.fmean(result[key] for result in results)


def _waves(trials: int, cores: int) -> int:
    return -(-trials // cores)


def _snakemake(path: Path, cores: int, rounds: int, target: str) -> int:
    # beside the configuration, whose numbers `--config` would hand on as texts
    changed = config.SEARCHED / "rounds.yaml"
    write_text(changed, f"search: {{rounds: {rounds}}}\n")
    command = [sys.executable, "-m", "snakemake", target, "--cores", str(cores)]
    return subprocess.run([*command, "--configfile", str(path), str(changed)]).returncode
