"""The study's commands are ones the command line accepts, and its table is what the scores say."""

import argparse
from pathlib import Path

import pytest

from toolkit.errors import UserError
from toolkit.files import write_json
from toolkit.world import study


def accepted(command: list[str]) -> bool:
    """Whether the noun's own parser takes the command."""
    import importlib

    parser = argparse.ArgumentParser()
    importlib.import_module(f"toolkit.{command[0]}.cli").commands(parser.add_subparsers(required=True))
    return callable(parser.parse_args(command[1:]).run)


def test_every_command_is_one_of_the_toolkit():
    jobs = [
        *study.shared(Path("r")),
        *study.corpus(Path("r"), 1),
        *(job for name in study.RECIPES for job in study.experiment(Path("r"), 1, name)),
    ]
    assert len(jobs) == 2 + 1 + 7 + 9
    assert all(accepted(job.command) for job in jobs)
    shuffled = [job for job in jobs if "--shuffle-images" in job.command]
    assert {job.done.parts[2] for job in shuffled} == {"synth-shuffled"}


def test_table_of_finished_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run", lambda job: None)
    for seed, low, high in ((1, 10.0, 60.0), (2, 20.0, 70.0), (3, 30.0, 80.0)):
        for folder, value in (("baseline", low), ("synth", high), ("synth-shuffled", 2.5)):
            write_json(tmp_path / f"seed-{seed}" / folder / "textvqa" / "score.json", {"accuracy": value})
            write_json(tmp_path / f"seed-{seed}" / folder / "mmbench" / "score.json", {"circular": value, "vanilla": value})
    result = study.study(tmp_path, seeds=3, processes=1)
    assert result["table"]["TextVQA"]["difference in sd"] == pytest.approx(5.0)
    assert "| TextVQA | 20.0 ± 10.0 | 70.0 ± 10.0 | +5.0 sd | 2.5 ± 0.0 |" in study.markdown(result)


def test_a_failing_command_names_its_log(tmp_path):
    job = study.Job(["world", "build", "--part", "seed", "--seed", "x", "--output", str(tmp_path)], tmp_path / "never")
    with pytest.raises(UserError, match=r"never\.log"):
        study.run(job)
