"""A trial in miniature: the tiny models on a few drawn rows, from proposals to the winner's recipe."""

from pathlib import Path

import pytest

from toolkit.__main__ import main
from toolkit.config import Config, Search
from toolkit.files import read_json, read_yaml
from toolkit.search import trial
from toolkit.search.proposal import Proposal
from toolkit.search.propose import raw_data
from toolkit.world.build import build

ROOT = Path(__file__).parents[2]
SEARCH = Search(
    development="world-development", rounds=1, trials=2, rows=1800, instructions=16, finalists=1, repeats=1
)
DECISIVE = {"scale", "assets", "synthesize", "pretrain", "finetune", "benchmarks"}
SETUP = trial.Setup(**Config().model_dump(include=DECISIVE))
SPACE = """
process:
  - words_num_filter: {min_num: {range: [1, 3]}}
  - batched_similarity_filter: {hf_clip: "{clip}", min_score: {quantile: {range: [0, 0.5, 0.25]}}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A project's folder with the tiny models and small data."""
    root = tmp_path_factory.mktemp("project")
    for part, seed, rows in (("seed", 3, 40), ("instruction", 4, 16), ("development", 5, 5)):
        build(part, root / f"input/world-{part}", seed, rows)
    for name in ("gemma", "clip", "convnext"):
        (root / f"input/world-{name}").symlink_to(ROOT / "toolkit/world/zoo" / name)
    (root / "space.yaml").write_text(SPACE)
    return root


@pytest.fixture(autouse=True)
def project(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def test_a_search_in_miniature(project, capsys):
    """Every command of the rules, by hand and in their order."""
    pytest.importorskip("optuna", reason="needs `make setup EXTRAS=search`")
    settings = Config().model_dump_json(include=DECISIVE)
    search, trials = SEARCH.model_dump_json(), Path("output/search/trials")
    scores = ["--scores", "output/scores", "--settings", settings]
    space = ["--space", "space.yaml"]
    assert main(["search", "scores", *space, *scores, "--output", "output/search/scores.json"]) == 0
    rounds: list[str] = []
    for name in ("0", "finals"):
        path = f"output/search/round-{name}.json"
        final = ["--final"] if name == "finals" else []
        propose = ["search", "propose", *space, "--search", search, "--trials", str(trials), *final]
        assert main([*propose, "--rounds", *rounds, "--output", path]) == 0
        rounds.append(path)
        for proposal in read_json(path)["proposals"]:
            how = ["--round", path, "--key", proposal["key"], "--questions", "world-development", *scores]
            assert main(["search", "trial", *how, "--output", str(trials / f"{proposal['key']}.json")]) == 0
    select = ["search", "select", "--rounds", *rounds, "--trials", str(trials), "--search", search]
    assert main([*select, "--output", "output/search"]) == 0
    first, *_ = [read_json(trials / f"{each['key']}.json") for each in read_json(rounds[0])["proposals"]]
    assert (
        first["kept"] == 40 and first["rows"] == 24 and first["accuracies"].keys() == {"textvqa", "mmbench"}
    )
    record = read_json("output/search/search.json")
    # 1,800 of the scale's 3,000 rows: the same part of what the full training would read
    assert all(each["rows"] == each["kept"] * 1800 // 3000 for each in record["trials"])
    winner = read_yaml("output/search/winner.yaml")
    assert winner["process"] == record["winner"]["process"] and len(record["trials"]) == 2
    rows = read_yaml("output/search/control.yaml")["process"][0]["random_selector"]["select_num"]
    assert rows == record["winner"]["rows"]


def test_a_recipe_that_removes_all_rows_scores_nothing(project, tmp_path):
    proposal = Proposal([{"words_num_filter": {"min_num": 50}}], {}, 1800, 16, 0)
    result = trial.run(proposal, SETUP, "world-development", tmp_path / "scores", tmp_path / "work")
    assert result["accuracies"] == {"textvqa": 0.0, "mmbench": 0.0} and result["rows"] == 0
    assert not (tmp_path / "work").exists()


def test_a_killed_trial_continues_to_the_same_result(project, tmp_path, monkeypatch):
    whole = trial.run(raw_data(SEARCH), SETUP, "world-development", tmp_path / "scores", tmp_path / "work")
    trained = []
    pretrain, finetune = trial.pretrain, trial.finetune
    monkeypatch.setattr(trial, "pretrain", lambda *how: (trained.append("pretrain"), pretrain(*how)))

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "finetune", killed)
    arguments = (raw_data(SEARCH), SETUP, "world-development", tmp_path / "scores", tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        trial.run(*arguments)
    monkeypatch.setattr(trial, "finetune", finetune)
    continued = trial.run(*arguments)
    assert trained == ["pretrain"] and continued["accuracies"] == whole["accuracies"]
