"""Does the search beat chance and reach the shipped recipes? Which proxy ranks recipes like the tiny run?

    python tests/bench/bench_search.py --cores 32 --output output/search-bench

Needs no Snakemake: the functions of its rules run in a pool of processes. Every training leaves a file, so
the same command continues after a kill, also with another --rounds or --repeats. It prints and writes
search.md:

- searches by TPE and by chance of the same size, `--repeats` of each; every winner, its random control and
  the shipped recipes are trained again at full size with five fresh seeds and answer the evaluation's
  questions;
- Spearman's correlation of the shipped recipes' development scores at several proxy sizes with their scores
  at full size.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the embedded world is for processors
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from toolkit import config  # noqa: E402
from toolkit.assets import entry  # noqa: E402
from toolkit.assets.fetch import fetch  # noqa: E402
from toolkit.evaluate.comparison import bounds  # noqa: E402
from toolkit.files import read_json, read_yaml, write_json, write_text  # noqa: E402
from toolkit.intervals import of_few  # noqa: E402
from toolkit.processes import pool  # noqa: E402
from toolkit.search import space as spaces  # noqa: E402
from toolkit.search.proposal import Proposal  # noqa: E402
from toolkit.search.propose import finals, propose, score  # noqa: E402
from toolkit.search.select import control, select  # noqa: E402
from toolkit.studies.learning import differences  # noqa: E402
from toolkit.tables import markdown as table  # noqa: E402

SEEDS = (11, 12, 13, 14, 15)  # that confirm
PROXY_SEEDS = (21, 22, 23)
PROXIES = ((375, 250), (750, 250), (750, 500), (1500, 500), (1500, 1000), (3000, 1000))  # rows, instructions
EVALUATION = "world-evaluation"


def setup(settings: config.Config) -> Any:
    """What of the configuration decides a trial."""
    from toolkit.search.trial import Setup

    names = ("scale", "assets", "synthesize", "pretrain", "finetune", "benchmarks")
    return Setup(**settings.model_dump(include=set(names)))


def trained(proposal: Proposal, settings: config.Config, questions: str, output: Path) -> dict[str, Any]:
    """The result of a training, from its file where it is there."""
    from toolkit.search.trial import run

    name = f"{proposal.key}-{questions}"
    path = output / "trials" / f"{name}.json"
    if not path.is_file():
        log = output / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stream:  # of this process: everything that a training prints
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            write_json(
                path, run(proposal, setup(settings), questions, output / "scores", output / "work" / name)
            )
    return read_json(path)


def filled(recipe: str, settings: config.Config, output: Path, processes: int) -> None:
    """The statistics of a shipped recipe, or, without one, of the space."""
    from toolkit.data.synthesize import score as compute
    from toolkit.search import trial

    done = output / "filled" / f"{recipe or 'space'}.json"
    if done.is_file():
        return
    if recipe:
        run = trial.over_seed(
            setup(settings), config.RECIPES / f"{recipe}.yaml", output / "scores", processes
        )
        compute(run, done)
    else:
        space = spaces.read(Path(settings.search.space))
        trial.fill(space, setup(settings), output / "scores", output / "covering", processes)
        write_json(done, {})


class Bench:
    """What all parts share. `workers`: processes that train."""

    def __init__(self, settings: config.Config, output: Path, workers: Any) -> None:
        self.settings, self.output, self.workers = settings, output, workers
        self.development = settings.search.development
        self.started: dict[tuple[str, str], Future] = {}
        self.lock = Lock()

    def start(self, proposal: Proposal, questions: str) -> Future:
        """The one training of a key; several searches may ask for it."""
        with self.lock:
            name = proposal.key, questions
            if name not in self.started:
                arguments = (proposal, self.settings, questions, self.output)
                self.started[name] = self.workers.submit(trained, *arguments)
            return self.started[name]

    def train(self, proposals: Iterable[Proposal], questions: str) -> list[dict[str, Any]]:
        """Results in the order of the proposals, trained side by side."""
        return [future.result() for future in [self.start(proposal, questions) for proposal in proposals]]

    def search(self, search: config.Search) -> dict[str, Any]:
        """The record of one search."""
        space, rounds, results = spaces.read(Path(search.space)), [], {}
        for number in range(search.rounds + 1):
            last = number == search.rounds
            proposals = finals(search, rounds, results) if last else propose(space, search, rounds, results)
            rounds.append(proposals)
            for proposal, result in zip(proposals, self.train(proposals, self.development), strict=True):
                results[proposal.key] = result
            print(f"{search.sampler}, seed {search.seed}: round {number} of {search.rounds}", flush=True)
        record = select(rounds, results, search)
        write_json(self.output / f"{search.sampler}-{search.seed}.json", record)
        return record

    def confirm(self, recipes: dict[str, list]) -> dict[str, numpy.ndarray]:
        """Scores by recipe and seed, relative to the raw data with the same seed."""
        recipes = {"baseline": [], **recipes}
        jobs = [
            (name, Proposal(steps, None, None, None, seed))
            for name, steps in recipes.items()
            for seed in SEEDS
        ]
        results = self.train([proposal for _, proposal in jobs], EVALUATION)
        by_name: dict[str, list] = {}
        for (name, _), result in zip(jobs, results, strict=True):
            by_name.setdefault(name, []).append(result)
        raw = by_name["baseline"]
        return {
            name: numpy.array([score(own, base) for own, base in zip(rows, raw, strict=True)])
            for name, rows in by_name.items()
        }

    def proxies(self, recipes: dict[str, list], full: dict[str, numpy.ndarray]) -> list[list[str]]:
        """Each proxy's Spearman correlation with the mean full scores, by one seed and by all."""
        names = list(recipes)
        jobs = [
            Proposal(steps, None, rows, instructions, seed)
            for rows, instructions in PROXIES
            for seed in PROXY_SEEDS
            for steps in [[], *recipes.values()]
        ]
        results = iter(self.train(jobs, self.development))
        target, lines = [full[name].mean() for name in names], []
        for rows, instructions in PROXIES:
            by_seed, seconds = [], []
            for _ in PROXY_SEEDS:
                raw, *own = [next(results) for _ in range(len(names) + 1)]
                by_seed.append([score(result, raw) for result in own])
                seconds += [result["seconds"] for result in own]
            single = [spearmanr(values, target).statistic for values in by_seed]
            mean = spearmanr(numpy.mean(by_seed, axis=0), target).statistic
            each = ", ".join(f"{value:.2f}" for value in single)
            lines.append([f"{rows} + {instructions}", each, f"{mean:.2f}", f"{numpy.mean(seconds):.0f}"])
        halves = full_halves(full, names)
        lines.append(["full, evaluation, seeds apart", f"{halves:.2f}", "", ""])
        return lines


def full_halves(full: dict[str, numpy.ndarray], names: list[str]) -> float:
    """How well full runs with one seed rank recipes like the mean of the others: the ceiling of any proxy."""
    matrix = numpy.array([full[name] for name in names])
    return float(
        numpy.mean(
            [
                spearmanr(matrix[:, seed], numpy.delete(matrix, seed, axis=1).mean(axis=1)).statistic
                for seed in range(matrix.shape[1])
            ]
        )
    )


def shipped(settings: config.Config) -> dict[str, list]:
    """The steps of the shipped recipes that the configuration compares, by name."""
    names = [each.recipe for each in settings.experiments.values() if each.recipe not in config.WRITTEN]
    documents = {name: read_yaml(config.RECIPES / f"{name}.yaml") for name in names if name != "baseline"}
    return {
        name: [step if isinstance(step, dict) else {step: None} for step in document["process"]]
        for name, document in documents.items()
    }


def page(
    records: dict[tuple[str, int], dict], full: dict[str, numpy.ndarray], proxies: list[list[str]]
) -> str:
    """All results as Markdown."""
    rows = []
    for (sampler, seed), record in records.items():
        own, other = full[f"{sampler}-{seed}"], full[f"{sampler}-{seed}-control"]
        rows.append(
            [
                sampler,
                seed,
                len(record["trials"]),
                f"{record['seconds']:.0f}",
                f"{max(trial['score'] for trial in record['trials']):.3f}",
                f"{record['winner']['score']:.3f}",
                f"{own.mean():.3f} ({bounds(of_few(own), 3)})",
                f"{record['winner']['score'] - own.mean():+.3f}",
                f"{(own - other).mean():+.3f} ({bounds(of_few(own - other), 3)})",
            ]
        )
    header = ["sampler", "seed", "trials", "s", "best trial", "finals", "confirmed", "optimism", "to control"]
    ranked = sorted(full, key=lambda name: -full[name].mean())
    best = next(name for name in ranked if not name.startswith(("tpe-", "random-")))
    scores = [[name, f"{full[name].mean():.3f}", f"{full[name].std(ddof=1):.3f}"] for name in ranked]
    seeds = sorted({seed for _, seed in records})
    paired = [full[f"tpe-{seed}"].mean() - full[f"random-{seed}"].mean() for seed in seeds]
    tests = []
    for seed in seeds:
        others = {f"random-{seed}": full[f"random-{seed}"], best: full[best]}
        tested = differences(
            {name: (full[f"tpe-{seed}"] - values).tolist() for name, values in others.items()}
        )
        tests += [
            [
                f"tpe-{seed}",
                name,
                f"{row['difference']:+.3f} ({bounds(row['interval'], 3)})",
                f"{row['p']:.3f}",
            ]
            for name, row in tested.items()
        ]
    differing = ", ".join(f"{value:+.3f}" for value in paired)
    return "\n".join(
        [
            "# Search against chance\n",
            table(header, rows),
            f"TPE less random, confirmed, by repeat: {differing}; mean {numpy.mean(paired):+.3f} "
            f"({bounds(of_few(paired), 3)}).\n",
            table(["winner", "against", "difference over seeds, 95 %", "p (Holm)"], tests),
            f"Best shipped: {best}.\n",
            table(["recipe", "score", "sd over seeds"], scores),
            "# Proxies\n",
            table(["rows + instructions", "Spearman, each seed", "mean of seeds", "s a trial"], proxies),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="trainings at once")
    parser.add_argument("--output", type=Path, required=True, help="folder of all results")
    parser.add_argument("--repeats", type=int, default=3, help="searches by each sampler (%(default)s)")
    parser.add_argument("--rounds", type=int, help="of each search (the configuration's)")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    output = arguments.output.absolute()
    settings = config.read("workflow/config/search.yaml")
    search = settings.search
    for name in (*(name for _, name in settings.assets if name.startswith("world-")), search.development):
        if not Path("input", name, "manifest.json").is_file():
            fetch(name, entry(name), Path("input", name))
    recipes = shipped(settings)
    rounds = arguments.rounds or search.rounds
    asked = {
        (sampler, 100 * repeat): replace_search(search, sampler=sampler, seed=100 * repeat, rounds=rounds)
        for repeat in range(arguments.repeats)
        for sampler in ("tpe", "random")
    }
    # the threads outlive the processes: a process that a thread has started ends with it
    with (
        ThreadPoolExecutor(len(asked)) as threads,
        pool(arguments.cores, get_context("spawn")) as workers,
    ):
        for recipe in ("", *recipes):
            filled(recipe, settings, output, arguments.cores)
        bench = Bench(settings, output, workers)
        records = dict(zip(asked, threads.map(bench.search, asked.values()), strict=True))
        to_confirm = dict(recipes)
        for (sampler, seed), record in records.items():
            to_confirm[f"{sampler}-{seed}"] = record["winner"]["process"]
            to_confirm[f"{sampler}-{seed}-control"] = control(record)
        full = bench.confirm(to_confirm)
        print("confirmed", flush=True)
        proxies = bench.proxies(recipes, full)
    write_json(output / "full.json", {name: values.tolist() for name, values in full.items()})
    text = page(records, full, proxies)
    write_text(output / "search.md", text)
    print(text)


def replace_search(search: config.Search, **changes: Any) -> config.Search:
    return config.Search.model_validate(search.model_dump() | changes)


if __name__ == "__main__":
    main()
