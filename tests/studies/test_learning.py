"""The table of learning strategies: Holm's correction, verdicts, costs, equal numbers of rows."""

import json
from pathlib import Path

import pytest
from scipy.stats import t

from toolkit.__main__ import main
from toolkit.contest.records import write_record
from toolkit.files import write_json
from toolkit.studies.learning import corrected, differences, p_value

SEEDS = [1024, 7, 8]
MODEL = "MGM-Tiny-Finetune-"


def test_holm_by_hand():
    assert corrected([0.01, 0.04, 0.03, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert corrected([0.6, 0.5]) == [1.0, 1.0]
    assert corrected([0.02]) == [0.02]


def test_p_is_of_the_paired_t_test():
    values = [1.0, 2.0, 4.0]
    mean, deviation = 7 / 3, (((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2) ** 0.5
    assert p_value(values) == pytest.approx(2 * t.sf(mean / (deviation / 3**0.5), 2))
    assert p_value([0.0, 0.0]) == 1.0


def test_a_difference_that_many_comparisons_explain_is_undecided():
    clear = [4.9, 5.0, 5.1]
    likely = [1.0, 2.0, 4.0]  # p 0.12
    alone, among = differences({"a": clear}), differences({"a": clear, "b": likely, "c": [-5.1, -5, -4.9]})
    assert alone["a"]["verdict"] == among["a"]["verdict"] == "better"
    assert among["b"]["verdict"] == "undecided" and among["c"]["verdict"] == "worse"
    assert among["a"]["p"] == pytest.approx(3 * alone["a"]["p"])


def run(root: Path, name: str, rows: int, seconds: float) -> None:
    for stage in ("Pretrain", "Finetune"):
        folder = root / f"output/training_dirs/MGM-Tiny-{stage}-{name}"
        folder.mkdir(parents=True)
        write_record(
            folder / "run.json",
            stage.lower(),
            inputs={},
            outputs={},
            settings={"global_batch": 8},
            results={"steps": rows // 16},
        )
        (folder / "monitor.jsonl").write_text('{"peak_gib": 1.5}\n{"peak_gib": 2.5}\n')
        timed = root / f"output/benchmarks/{stage.lower()}/MGM-Tiny-{stage}-{name}.tsv"
        timed.parent.mkdir(parents=True, exist_ok=True)
        timed.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:10\t2048.00\n")


@pytest.fixture
def project(tmp_path):
    """Three seeds of a plain and another experiment, with their comparison."""
    accuracies = {"plain": [50.0, 52.0, 54.0], "other": [60.0, 62.0, 64.1]}
    names = {name: f"{MODEL}{name}" for name in accuracies}
    between = {key: [0.0, 1.0] for key in ("interval", "difference_interval", "ratio_interval")}
    results = {
        names[name]: {
            **between,
            **{"accuracy": 50.0, "difference": 0.0, "ratio": 1.0, "verdict": "undecided"},
            "over_seeds": {"seeds": SEEDS, "accuracies": values, "interval": [0.0, 1.0]},
        }
        for name, values in accuracies.items()
    }
    scores = [b / a for a, b in zip(*accuracies.values(), strict=True)]
    write_json(
        tmp_path / "compare.json",
        {
            "baseline": names["plain"],
            "experiments": [names["other"]],
            "seed": 1,
            "resamples": 10,
            "benchmarks": {"textvqa": {"questions": 10, "results": results}},
            "score": {
                names["other"]: {
                    **{"score": 1.0, "interval": [0.0, 1.0], "verdict": "undecided"},
                    "over_seeds": {"seeds": SEEDS, "scores": scores, "interval": [0.0, 1.0]},
                }
            },
        },
    )
    for name, seconds in (("plain", 10.0), ("other", 15.0)):
        for suffix in ("", "-seed7", "-seed8"):
            run(tmp_path, name + suffix, 160, seconds)
    return tmp_path


def table(project: Path) -> int:
    arguments = ["--comparison", project / "compare.json", "--root", project]
    arguments += ["--output", project / "s.json", "--markdown", project / "s.md"]
    return main(["evaluate", "strategies", *map(str, arguments)])


def test_the_table_says_differences_and_costs(project):
    assert table(project) == 0
    result = json.loads((project / "s.json").read_text())
    row = result["experiments"][f"{MODEL}other"]
    assert row["measures"]["textvqa"]["difference"] == pytest.approx(10.0333, abs=1e-3)
    assert row["measures"]["textvqa"]["verdict"] == "better"
    assert row["cost"] == {"rows": 160, "seconds": 30.0, "host_gib": 2.0, "gpu_gib": 2.5}
    page = (project / "s.md").read_text()
    assert "| plain |" in page and "20 (1.00 x)" in page and "30 (1.50 x)" in page
    assert "every run trains on 160 rows" in page and "+10.03 (" in page


def test_other_numbers_of_rows_are_refused(project, capsys):
    record = project / "output/training_dirs/MGM-Tiny-Pretrain-other/run.json"
    value = json.loads(record.read_text())
    value["results"]["steps"] += 1
    write_json(record, value)
    assert table(project) == 1
    assert "other trained on different numbers of rows with its seeds: [160, 168]" in capsys.readouterr().err
    for suffix in ("-seed7", "-seed8"):
        path = record.parent.with_name(f"{record.parent.name}{suffix}") / "run.json"
        write_json(path, value)
    assert table(project) == 1
    assert "plain 160, " in capsys.readouterr().err


def test_a_single_seed_is_refused(project, capsys):
    comparison = json.loads((project / "compare.json").read_text())
    for row in comparison["benchmarks"]["textvqa"]["results"].values():
        del row["over_seeds"]
    write_json(project / "compare.json", comparison)
    assert table(project) == 1
    assert "is of a single training seed" in capsys.readouterr().err


def test_an_untimed_run_is_named(project, capsys):
    (project / "output/benchmarks/finetune/MGM-Tiny-Finetune-other-seed8.tsv").unlink()
    assert table(project) == 1
    assert "MGM-Tiny-Finetune-other-seed8.tsv has no line: train" in capsys.readouterr().err
