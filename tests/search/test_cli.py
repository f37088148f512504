"""How many rounds fit into a budget, and what the report says of a search."""

import argparse
import json
from types import SimpleNamespace

import pytest

from toolkit.__main__ import main
from toolkit.config import Config, Search
from toolkit.errors import UserError
from toolkit.files import write_json
from toolkit.search import cli, report, trial
from toolkit.search.proposal import Proposal, write_round

SEARCH = Search(development="world-development", trials=4, rows=1500, finalists=3, repeats=2)
TRIALS = [{"seconds": 40.0, "seconds_of": {"data": 5.0, "training": 30.0, "answers": 5.0}}] * 5


def test_a_length_of_time():
    assert [cli.seconds(text) for text in ("90m", "2h", "1.5h", "30s", "5min")] == [5400, 7200, 5400, 30, 300]
    for text in ("2", "h", "0h", "2 days"):
        with pytest.raises(argparse.ArgumentTypeError, match="not a length of time, such as 90m or 2h"):
            cli.seconds(text)


def test_the_rounds_that_fit_by_hand():
    """A round of four takes two waves of 40 s on two cores, the first three; the finals eight trainings of
    70 s, so 280 s."""
    assert cli.fitting(SEARCH, TRIALS, Config(), 2, 280 + 40 + 3 * 80) == 3
    assert cli.fitting(SEARCH, TRIALS, Config(), 2, 280 + 40 + 3 * 80 - 1) == 2
    assert cli.fitting(SEARCH, TRIALS, Config(), 8, 70 + 5 * 40) == 5
    assert cli.fitting(SEARCH, TRIALS, Config(), 2, 10) == 0


def test_a_budget_needs_a_search(tmp_path, monkeypatch, capsys):
    assert main(["search"]) == 1 and "say how long to search: --budget 2h" in capsys.readouterr().err
    assert main(["search", "--budget", "1h", "--config", "workflow/config/tiny.yaml"]) == 1
    assert "has no section search" in capsys.readouterr().err


def test_a_budget_is_for_the_search_alone(tmp_path, monkeypatch, capsys):
    """Trainings that confirm come after the winner, not between the trials."""
    monkeypatch.setattr(cli.config, "SEARCHED", tmp_path)
    monkeypatch.setattr(cli, "TRIALS", tmp_path / "trials")
    proposal = Proposal([], {}, None, None, 1)
    write_round(tmp_path / "round-0.json", [proposal])
    write_json(tmp_path / f"trials/{proposal.key}.json", TRIALS[0])
    monkeypatch.setattr("toolkit.plan.show.recorded", lambda: {f"trial/{proposal.key}": 40.0})
    # 40 s of a trial, after 100 s of preparing
    clock = SimpleNamespace(monotonic=iter([1000.0, 1140.0, 2770.0]).__next__)
    monkeypatch.setattr(cli, "time", clock)
    targets = []
    monkeypatch.setattr(cli, "_snakemake", lambda *how: targets.append(how[2:]) or 0)
    assert main(["search", "--budget", "30m", "--cores", "2", "--config", str(cli.DEFAULT)]) == 0
    rounds = cli.fitting(SEARCH, TRIALS[:1], Config(), 2, 1800 - 100)
    winner = str(tmp_path / "winner.yaml")
    assert targets == [(10, "search_first"), (rounds, winner), (rounds, "search")]
    assert "searched for 30 min of 30 min" in capsys.readouterr().err
    clock.monotonic = iter([1000.0, 1140.0]).__next__
    targets.clear()
    assert main(["search", "--budget", "2min", "--cores", "2", "--config", str(cli.DEFAULT)]) == 1
    assert "not even one round fits into 2.0 min: a trial takes 40 s" in capsys.readouterr().err
    assert targets == [(10, "search_first")]


def test_a_trial_that_another_version_of_the_code_began_is_not_continued(tmp_path, monkeypatch):
    proposal = Proposal([], {}, None, None, 1)
    write_round(tmp_path / "round-0.json", [proposal])
    folders = []
    monkeypatch.setattr(trial, "run", lambda *arguments: folders.append(arguments[-1]) or {})
    decisive = {"scale", "assets", "synthesize", "pretrain", "finetune", "benchmarks"}
    settings = Config().model_dump_json(include=decisive)
    flags = ["--round", tmp_path / "round-0.json", "--key", proposal.key, "--questions", "world-development"]
    flags += ["--settings", settings, "--scores", tmp_path, "--output", tmp_path / "trials/a.json"]
    for _ in range(2):
        assert main(["search", "trial", *map(str, flags)]) == 0
    monkeypatch.setattr(cli.code, "digest", lambda *_: "0" * 64)
    assert main(["search", "trial", *map(str, flags)]) == 0
    assert folders[0] == folders[1] != folders[2]


# --- the report


def comparison(path, scores: dict[str, list[float]]):
    """A compare.json of two or three seeds with these contest scores, all accuracies 50 %."""
    seeds = list(range(11, 11 + len(next(iter(scores.values())))))
    model = "MGM-Tiny-Finetune-{}".format
    between = {key: [0.0, 1.0] for key in ("interval", "difference_interval", "ratio_interval")}
    spread = {"seeds": seeds, "interval": [0.0, 1.0]}
    undecided = {"interval": [0.0, 1.0], "verdict": "undecided"}
    accuracy = {"accuracy": 50.0, "difference": 0.0, "ratio": 1.0, **between, **undecided}
    accuracy["over_seeds"] = spread | {"accuracies": [50.0] * len(seeds)}
    names = [model(name) for name in ("baseline", *scores)]
    document = {
        "baseline": names[0],
        "experiments": names[1:],
        "seed": 1,
        "resamples": 10,
        "benchmarks": {
            benchmark: {"questions": 10, "results": dict.fromkeys(names, accuracy)}
            for benchmark in ("textvqa", "mmbench")
        },
        "score": {
            model(name): {"score": 1.0, **undecided, "over_seeds": spread | {"scores": values}}
            for name, values in scores.items()
        },
    }
    path.write_text(json.dumps(document))
    return path


RECIPES = {name: name for name in ("baseline", "winner", "control", "recaption")}
RECORD = {
    "search": SEARCH.model_dump(),
    "trials": [{"score": 1.9, "seconds": 40.0}, {"score": 2.6, "seconds": 41.0}],
    "winner": {
        "score": 2.5,
        "accuracies": {"textvqa": 80.0, "mmbench": 70.0},
        "kept": 900,
        "rows": 1500,
        "process": [{"repeat_mapper": {"times": 2}}],
    },
    "seconds": 81.0,
}


def test_the_report_says_what_was_promised_and_what_was_kept(tmp_path):
    scores = {"winner": [2.0, 2.1, 2.2], "control": [1.0, 1.15, 1.2], "recaption": [2.1, 2.0, 2.2]}
    path = comparison(tmp_path / "compare.json", scores)
    result = report.report(RECORD, path, RECIPES)
    assert result["confirmed"]["score"] == pytest.approx(2.1)
    assert result["optimism"] == pytest.approx(0.4) and result["promised"]["best_trial"] == 2.6
    assert result["experiments"]["control"]["verdict"] == "better"
    assert result["experiments"]["recaption"]["p"] == 1.0 and result["best_other"] == "recaption"
    assert result["at_least_as_good"]
    report.write(result, RECORD, tmp_path / "search.md")
    page = (tmp_path / "search.md").read_text()
    assert "It is better than the random control of equal size." in page
    assert "**It is not shown to be better than recaption, the best other recipe.**" in page
    assert "Within one standard deviation over the seeds it is as good as recaption." in page
    assert "Optimism of the search: +0.400" in page and "repeat_mapper" in page
    assert (tmp_path / "search.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "search.json").read_text())["seeds"] == [11, 12, 13]


def test_a_worse_winner_is_called_worse(tmp_path):
    scores = {"winner": [1.0, 1.1, 1.2], "control": [2.0, 2.15, 2.2], "recaption": [3.0, 3.1, 3.3]}
    result = report.report(RECORD, comparison(tmp_path / "compare.json", scores), RECIPES)
    page = report.markdown(result)
    assert "**It is worse than the random control of equal size.**" in page
    assert "**It is more than one standard deviation behind recaption.**" in page


def test_a_confirmation_needs_several_seeds_and_the_winner(tmp_path):
    path = comparison(tmp_path / "compare.json", {"winner": [1.0], "control": [1.0], "recaption": [1.0]})
    with pytest.raises(UserError, match="single training seed"):
        report.report(RECORD, path, RECIPES)
    with pytest.raises(UserError, match="no experiment has the recipe control"):
        report.report(RECORD, path, {"baseline": "baseline", "winner": "winner"})
