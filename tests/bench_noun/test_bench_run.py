"""The benchmarks in one go."""

import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "run"


def load() -> ModuleType:
    """tests/bench/run as a module."""
    module = ModuleType("bench_run")
    module.__file__ = str(SCRIPT)
    SourceFileLoader("bench_run", str(SCRIPT)).exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """tests/bench/run with files of its own."""
    module = load()
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.chdir(tmp_path)
    return module


def command(tmp_path, name, text):
    (tmp_path / name).write_text(f"import json, sys\nfile = sys.argv[-1]\n{text}\n")
    return str(tmp_path / name)


def run(bench, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["tests/bench/run", *flags])
    return bench.main()


def test_figures_are_kept_and_compared(bench, monkeypatch, tmp_path, capsys):
    count = command(
        tmp_path,
        "count.py",
        "from pathlib import Path\ntold = Path(sys.argv[0]).with_suffix('.txt')\n"
        "number = int(told.read_text()) if told.exists() else 9\ntold.write_text(str(number + 1))\n"
        "json.dump({'speeds': [{'rate': number}], 'none': None}, open(file, 'w'))",
    )
    figures = {"speeds.0.rate": "things/s", "none": "of a GPU"}
    many = bench.Benchmark("on a thousand", "nothing", {}, 1000)
    monkeypatch.setattr(bench, "BENCHMARKS", [bench.Benchmark("count", count, figures), many])
    assert run(bench, monkeypatch, "--repeats", "3", "--keep") == 0
    said = capsys.readouterr().out
    assert "| count | 10 things/s | 20 % | - |" in said and "thousand" not in said and "of a GPU" not in said
    (kept,) = (tmp_path / "kept").iterdir()
    assert json.loads(kept.read_text())["benchmarks"]["count"]["figures"] == {"things/s": [9, 10, 11]}
    assert run(bench, monkeypatch, "count") == 0
    assert "| count | 12 things/s | - | 1.20 |" in capsys.readouterr().out


def test_one_that_fails_is_named_and_nothing_is_kept(bench, monkeypatch, tmp_path, capsys):
    broken = bench.Benchmark("broken", command(tmp_path, "broken.py", "sys.exit(3)"), {"a": "b"})
    works = bench.Benchmark(
        "works", command(tmp_path, "works.py", "json.dump({'a': 1}, open(file, 'w'))"), {"a": "b"}
    )
    monkeypatch.setattr(bench, "BENCHMARKS", [broken, works])
    assert run(bench, monkeypatch, "--keep") == 1
    assert "broken ended with status 3" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "bench.json").read_text())["benchmarks"]) == ["works"]
    assert not (tmp_path / "kept").exists()


def test_the_docs_are_those_of_the_kept_files():
    bench = load()
    assert bench.page() == bench.PAGE.read_text(encoding="utf-8")
