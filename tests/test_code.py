"""Which code decides a result: everything that is imported and nothing that only reports."""

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from toolkit import code
from toolkit.contest.stages import MODULES, STAGES

ROOT = Path(__file__).parents[1]


def names(*modules: str) -> set[str]:
    return {path.relative_to(code.HERE).as_posix() for path in code.closure(*modules)}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the toolkit's place: a.py imports b inside a function, b from c.d, whose package imports
    e."""
    folder = tmp_path / "toolkit"
    (folder / "c").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("def run():\n    from toolkit.b import value\n    return value\n")
    (folder / "b.py").write_text("from .c.d import value\nfrom toolkit import errors\nimport json\n")
    (folder / "c/__init__.py").write_text("from toolkit.e import everything\n")
    (folder / "c/d.py").write_text("value = 1\n")
    (folder / "e.py").write_text("everything = 2\n")
    (folder / "errors.py").write_text("")
    (folder / "f.py").write_text("from toolkit.c import everything\n")
    monkeypatch.setattr(code, "HERE", folder)
    code.imports.cache_clear()
    yield folder
    code.imports.cache_clear()


def test_imports_are_followed_also_inside_of_functions(package):
    assert names("toolkit.a") == {"a.py", "b.py", "c/d.py"}
    assert names("toolkit.f") == {"f.py", "c/__init__.py", "e.py"}


def test_the_digest_follows_every_file_of_the_closure(package):
    before = code.digest("toolkit.a")
    (package / "errors.py").write_text("# reports only\n")
    (package / "e.py").write_text("everything = 3\n")
    assert code.digest("toolkit.a") == before
    (package / "c/d.py").write_text("value = 2\n")
    assert code.digest("toolkit.a") != before


def test_an_unknown_module_is_an_error(package):
    with pytest.raises(KeyError, match=r"toolkit\.zzz"):
        code.closure("toolkit.zzz")
    (package / "e.py").write_text("def run():\n    from toolkit import gone\n")
    code.imports.cache_clear()
    with pytest.raises(KeyError, match=r"e\.py imports toolkit, where there is no module of that name"):
        code.closure("toolkit.f")


def test_what_decides_bits_is_in_the_closure_of_its_stage():
    assert "mgm/device.py" in names(STAGES["pretrain"].module)  # the number of threads
    assert {"train/trainer.py", "mgm/model.py", "data/samples.py", "images.py", "files.py"} <= names(
        "toolkit.train.stages"
    )
    assert "evaluate/control.py" in names("toolkit.evaluate.run") and "benchmarks/mmbench.py" not in names(
        "toolkit.evaluate.run"
    )
    assert "data/operators/batched_captioning_mapper.py" in names("toolkit.data.synthesize")
    everything = names(*MODULES)
    assert not {
        name
        for name in everything
        if name.startswith(("bundle/", "report/", "bench/", "world/")) or name.endswith("cli.py")
    }


def test_no_import_goes_upwards_or_in_a_circle():
    """Layers: each may import from those before it, modules of one package from each other where nothing goes
    in a circle."""
    layers = [
        {"errors"},
        {
            "arguments",
            "counted",
            "parse",
            "files",
            "terminal",
            "processes",
            "progress",
            "images",
            "tables",
            "intervals",
            "seeds",
            "svg",
            "pages",
            "torchvision_cpu",
        },
        {"code", "aesthetics"},
        {"assets", "scales", "benchmarks"},
        {"contest"},
        {"config"},
        {"mgm"},
        {"data"},
        {"world"},
        {"train", "evaluate", "report"},
        {"studies", "bundle", "doctor", "lmms", "ask", "export", "merge_check"},
        {"bench", "rehearsal", "serve", "search"},
        {"plan"},
        {"audit", "watch"},
    ]
    edges: dict[str, set[str]] = {}
    level = {name: number for number, layer in enumerate(layers) for name in layer}
    for path in sorted((ROOT / "toolkit").rglob("*.py")):
        own = path.relative_to(ROOT / "toolkit").parts[0].removesuffix(".py")
        if own in ("__init__", "__main__") or path.name == "cli.py":  # a command line may call anything
            continue
        for name in code.imports(path):
            other = name.split(".")[1]
            assert level[other] <= level[own], f"{path.relative_to(ROOT)} imports {name}"
            if other != own:
                edges.setdefault(own, set()).add(other)
    tuple(TopologicalSorter(edges).static_order())  # CycleError for a circle of packages


def test_a_command_starts_without_torch_and_pandas():
    for noun in (
        "ask",
        "data",
        "evaluate",
        "config",
        "bundle",
        "doctor",
        "plan",
        "search",
        "serve",
        "watch",
        "merge_check",
    ):
        loaded = (
            f"import sys; from toolkit.{noun} import cli; print([m for m in ('torch', 'pandas', 'scipy') "
            "if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]", noun
