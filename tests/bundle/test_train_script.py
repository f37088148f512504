"""train.sh and the report say what the records say."""

import argparse
import json
import subprocess
from pathlib import Path

import pytest
from entry_tree import EntryTree, edit

from toolkit.__main__ import main
from toolkit.bundle.papers.train_script import fold
from toolkit.contest.experiment import Experiment
from toolkit.errors import UserError
from toolkit.report.page import page

TREE = EntryTree()
PRETRAIN, FINETUNE, RESULTS = TREE.pretrain, TREE.finetune, TREE.results()
PROMPT = 'It\'s "free" & $HOME\nsecond line'


def commands(script: str, tmp_path: Path) -> list[list[str]]:
    """The argument lists that bash makes of a script's `python` commands."""
    log = tmp_path / "calls"
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(
        f"#!/usr/bin/python3\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + "
        "'\\n')\n"
    )
    stub.chmod(0o755)
    subprocess.run(["bash", script], check=True, env={"PATH": f"{stub.parent}:/usr/bin:/bin"}, cwd="/")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_script_runs_the_recorded_commands(tree, tmp_path):
    edit(Path(RESULTS, "mmbench/run.json"), lambda record: record["settings"].update(prompt=PROMPT))
    assert main(["bundle", "train-script", "--experiment", "synth", "--output", "output/train.sh"]) == 0
    text = Path("output/train.sh").read_text()
    assert str(tree) not in text
    calls = commands(str(tree / "output/train.sh"), tmp_path)
    assert all(call[:2] == ["-m", "toolkit"] for call in calls)
    verbs = [" ".join(call[2:4]) for call in calls]
    assert verbs[-8:] == [
        "data synthesize",
        "data check",
        "data convert",
        "train pretrain",
        "train finetune",
        "train merge",
        "evaluate textvqa",
        "evaluate mmbench",
    ]
    fetched = {call[call.index("--asset") + 1] for call in calls if call[2] == "assets"}
    assert fetched == {
        f"world-{part}"
        for part in ("seed", "instruction", "evaluation", "gemma", "clip", "convnext", "captioner")
    }
    for folder, stage in ((PRETRAIN, "pretrain"), (FINETUNE, "finetune")):
        recorded = json.loads(Path(folder, "run.json").read_text())["settings"]["command"]
        assert calls[verbs.index(f"train {stage}")] == recorded[1:]
    assert calls[-1][calls[-1].index("--prompt") + 1] == PROMPT


def test_script_commands_are_accepted(tree, tmp_path):
    """Every command but the training ones, whose flags the made-up records cut short, parses."""
    import importlib

    for call in commands(str(tree / "output/train.sh"), tmp_path):
        if call[2] in ("assets", "data", "evaluate"):
            parser = argparse.ArgumentParser()
            importlib.import_module(f"toolkit.{call[2]}.cli").commands(parser.add_subparsers())
            parser.parse_args(call[3:])


def test_script_refuses_absolute_paths(tree, capsys):
    edit(
        Path(PRETRAIN, "run.json"), lambda record: record["settings"]["command"].append("/home/someone/data")
    )
    assert main(["bundle", "train-script", "--experiment", "synth", "--output", "train.sh"]) == 1
    assert "relative paths" in capsys.readouterr().err
    assert not Path("train.sh").exists()


def test_script_names_what_is_missing(tree, capsys):
    Path(RESULTS, "textvqa/run.json").unlink()
    assert main(["bundle", "train-script", "--experiment", "synth", "--output", "train.sh"]) == 1
    assert f"{RESULTS}/textvqa/run.json does not exist" in capsys.readouterr().err
    assert main(["bundle", "train-script", "--experiment", "nothing", "--output", "train.sh"]) == 1
    assert "was not trained yet" in capsys.readouterr().err


def test_fold_quotes():
    assert fold(["a", "--b", "c d", "--e"]) == "python -m toolkit a \\\n    --b 'c d' \\\n    --e"


def test_report_is_made_of_records(tree):
    text = page("-5 %\n <b>Title</b>", [Experiment.find(tree, "synth")], "losses.svg", [])
    assert text.startswith("# -5 % &lt;b>Title&lt;/b>\n")  # an entry must not hold HTML
    score = json.loads(Path(RESULTS, "textvqa/score.json").read_text())
    assert f"| TextVQA | 20 | synth | {score['accuracy']:.2f} |" in text
    assert "| synth | 40 | 36 | 4 | 0 | 36 | 36 |" in text
    assert "| synth | batched_similarity_filter | 4 |" in text
    assert "| synth | pretrain | 36 | 5 | 8 | 0.001 | 5.6000 | 4.0000 | 4.8000 |" in text
    assert "| synth | 1.00e-06 | 0.0001 | 1 of 3 | 0 |" in text
    assert "](losses.svg)" in text
    assert str(tree) not in text


def test_report_needs_the_comparison_of_its_experiments(tree):
    edit(
        Path("output/reports/compare.json"),
        lambda value: value["benchmarks"]["textvqa"]["results"].pop("MGM-Tiny-Finetune-synth"),
    )
    with pytest.raises(UserError, match="does not know MGM-Tiny-Finetune-synth"):
        page("Title", [Experiment.find(tree, "synth")], "losses.svg", [])
