"""Recipes beside a control of equal number: what is measured, what is left out and why."""

import json
from pathlib import Path

import pytest
from tiny_data import run_data, seed_row, seed_set, write_rows
from world_rows import ZOO

from toolkit.__main__ import main
from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.studies.strategies import likeness, trained
from toolkit.world.build import build


def strategies(folder: Path, *more: object) -> list[str]:
    rows = seed_set(folder, 40)
    rows[7] = {**rows[6], "id": rows[7]["id"]}  # a repeated row
    samples = write_rows(folder / "rows.jsonl", [*rows, "no row"])
    return [
        *map(str, ["strategies", "--samples", samples, "--images", folder, "--output", folder / "out", *more])
    ]


def test_recipes_beside_their_control(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    score = {"score": 1.5, "interval": [1.2, None], "verdict": "better"}
    between = {key: [0.0, 1.0] for key in ("interval", "difference_interval", "ratio_interval")}
    row = {"accuracy": 50.0, "difference": 0.0, "ratio": 1.0, "verdict": "undecided", **between}
    names = ["MGM-Tiny-Finetune-baseline", "MGM-Tiny-Finetune-random"]
    compared = {
        **{"baseline": names[0], "experiments": names[1:], "seed": 1, "resamples": 10},
        "benchmarks": {"textvqa": {"questions": 10, "results": dict.fromkeys(names, row)}},
        "score": {names[1]: score},
    }
    (tmp_path / "compare.json").write_text(json.dumps(compared))
    arguments = strategies(
        tmp_path, "--recipes", "baseline", "random", "clip_top", "--results", tmp_path / "compare.json"
    )
    assert main(["data", *arguments]) == 0
    found = read_json(tmp_path / "out/strategies.json")
    assert found["read"] == 41 and found["valid"] == 40
    everything, half, without = found["recipes"].values()
    assert without == {"none": "not run: no model clip"}
    assert everything["kept"] == 40 and everything["retention"] == 40 / 41
    # a control of all rows is all rows
    assert everything["recipe"] == everything["control"] and everything["recipe"]["repeated"] == 1
    assert half["kept"] == 20 and half["score"] == score and everything["score"] is None
    assert half["recipe"]["similarity"] is None and half["recipe"] != half["control"]
    assert half["recipe"]["diversity"]["HD-D"]["value"] > 0
    printed = capsys.readouterr().out
    assert "| 1.50 (1.20 to ?) |" in printed and "not run: no model clip" in printed


def test_similarity_rises_where_clip_chose(tmp_path: Path, clip: Path) -> None:
    done = run_data(*strategies(tmp_path, "--recipes", "clip_top", "--model", f"clip={clip}"))
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "out/strategies.json")["recipes"]["clip_top"]
    chosen, control = found["recipe"]["similarity"], found["control"]["similarity"]
    assert (
        chosen["low"] < chosen["mean"] < chosen["high"] and control["low"] < control["mean"] < control["high"]
    )
    assert chosen["mean"] > control["mean"]
    assert found["model_calls"] == 40


def test_likeness_unsafe_rows_and_contamination(tmp_path: Path) -> None:
    build("evaluation", tmp_path / "questions", 5, 2)
    models = [
        f"--model={role}={ZOO / folder}" for role, folder in [("sentences", "sentences"), ("nsfw", "pattern")]
    ]
    arguments = strategies(
        tmp_path, "--recipes", "baseline", "random", *models, "--questions", tmp_path / "questions"
    )
    stolen = next((tmp_path / "questions/textvqa/train_images").glob("*.jpg"))
    (tmp_path / seed_row(3, "")["images"][0]).write_bytes(stolen.read_bytes())
    done = run_data(*arguments)
    assert done.returncode == 0, done.stderr
    everything, half = read_json(tmp_path / "out/strategies.json")["recipes"].values()
    likeness = everything["recipe"]["likeness"]
    assert -1 < likeness["low"] < likeness["mean"] < likeness["high"] < 1
    assert half["recipe"]["likeness"] != half["control"]["likeness"]
    assert everything["contaminated"] >= 1 and everything["recipe"]["unsafe"] <= 40
    row = next(line for line in done.stdout.splitlines() if line.startswith("| baseline "))
    assert f"| {likeness['mean']:.3f} ({likeness['low']:.3f} to {likeness['high']:.3f}) |" in row


def test_likeness_is_the_mean_over_pairs() -> None:
    vectors = [[1.0, 0.0], [0.0, 2.0], [0.6, 0.8]]  # cosines 0, 0.6 and 0.8
    found = likeness([{"sentence_embedding": vector} for vector in vectors], ["a", "b", "c"])
    assert found["mean"] == pytest.approx(1.4 / 3)
    assert likeness([{"sentence_embedding": [1.0]}], ["a"]) == {"mean": None, "low": None, "high": None}


def test_questions_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", *strategies(tmp_path, "--questions", tmp_path)]) == 1
    assert "has no folder with official files of a benchmark, named textvqa" in capsys.readouterr().err


def small_recipes(folder: Path) -> Path:
    """One recipe removes all rows, one all but the longest, one none."""
    folder.mkdir()
    (folder / "all.yaml").write_text("process: [{text_length_filter: {min_len: 100000}}]")
    (folder / "most.yaml").write_text(
        "process: [{text_length_filter: {min_len: {rows: 1}}}, {random_selector: {select_num: 1}}]"
    )
    (folder / "none.yaml").write_text("process: []")
    return folder


def test_a_recipe_that_removes_everything_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("toolkit.studies.runs.RECIPES", small_recipes(tmp_path / "recipes"))
    assert main(["data", *strategies(tmp_path)]) == 0
    found = read_json(tmp_path / "out/strategies.json")["recipes"]
    assert found["all"] == {"none": "removes all rows"}
    assert found["most"]["kept"] == 1 and found["none"]["kept"] == 40
    lines = (tmp_path / "out/strategies.md").read_text().splitlines()[2:]
    assert (
        lines[2].startswith("| all | removes all rows |  |") and len({line.count("|") for line in lines}) == 1
    )
    assert "| all | removes all rows |" in capsys.readouterr().out


def test_results_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(UserError, match="is not of `evaluate compare`"):
        trained(tmp_path / "compare.json")
