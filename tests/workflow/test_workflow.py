"""The workflow as a whole: clean, one clear sentence for each mistake before any job, and failures that stay failures."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_lint(project):
    status, printed = project.snakemake("--lint")
    assert status == 0, printed


def test_format():
    files = ["Snakefile", *sorted(map(str, (ROOT / "workflow/rules").glob("*.smk")))]
    tools = Path(sys.executable).parent  # snakefmt looks for shfmt on the PATH
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([tools / "snakefmt", "--check", *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scale", ["baseline_10k", "track_200k"])
def test_the_full_scales_have_the_same_rules(project, scale):
    jobs = project.jobs("--forceall", "--configfile", f"workflow/config/{scale}.yaml")
    tiny = project.jobs("--forceall")
    assert {job for job in jobs if "download" not in job} == {job for job in tiny if "download" not in job}
    assert "download gemma-2b-it" in jobs and "download world-gemma" in tiny


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("finetune={lora_rnak: 8}", "finetune.lora_rnak: unknown key; did you mean lora_rank"),
        ("seed=abc", "seed: expected a valid integer, not 'abc'"),
        ("experiments={synth: {recipe: absent}}", "experiments.synth.recipe: 'absent' is not a recipe in solution/recipes"),
        ("assets={llm: world-gema}", "assets.llm: 'world-gema' is not an asset"),
    ],
)
def test_a_mistake_in_the_configuration_ends_before_any_job(project, config, sentence):
    status, printed = project.snakemake("submit.zip", "--config", config)
    assert status == 1
    assert printed.count(sentence) == 1 and "Traceback" not in printed
    assert "Building DAG" not in printed


def test_a_failed_command_is_named_and_leaves_no_output(project):
    (project.path / "fail").write_text("merge")
    status, printed = project.snakemake("submit.zip", "--config", "seed=7", "--keep-going")
    assert status == 1
    assert "error: the disk is on fire" in printed
    assert not (project.path / "output/training_dirs/MGM-Tiny-Finetune-synth/merge.json").exists()
    assert "disk is on fire" in (project.path / "output/logs/merge/MGM-Tiny-Finetune-synth.log").read_text()
    (project.path / "fail").unlink()
    left = project.jobs("--config", "seed=7")
    assert {"merge synth", "eval_mmbench synth", "submit"} <= left and "finetune synth" not in left


def test_the_figure_of_a_training_needs_the_training_alone(project):
    status, printed = project.snakemake("output/reports/training-synth.svg")
    assert status == 0 and "rule training_figure" in printed and "1 of 1 steps" in printed, printed
    assert project.jobs() == set()  # nothing of the entry follows from it


def test_the_look_at_the_data_needs_the_data_alone(project):
    status, printed = project.snakemake("output/reports/data-synth/index.html", "output/reports/data-synth/compare.json")
    assert status == 0 and "2 of 2 steps" in printed, printed
    assert project.jobs() == set()  # nothing of the entry follows from it


def module_files(module: str) -> list[Path]:
    path = Path(module.replace(".", "/"))
    return [file for file in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / file).exists()]


def imported(file: Path) -> set[Path]:
    """Files of the toolkit that `file` imports, at its head or inside a function."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(file.parts[: len(file.parts) - node.level]) if node.level else ""
            base = ".".join(filter(None, [package, node.module]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        found.update(file for name in names if name.startswith("toolkit.") for file in module_files(name))
    return found


# Entry module of a rule: the names in TOOLS of the rule itself and of the rules that it follows from.
EVALUATED = ["world", "score", "check", "convert", "train", "merge", "eval"]
ENTERED = [*EVALUATED, "textvqa", "mmbench", "compare", "contamination", "report", "train_script", "sources", "crate"]
ENTRIES = {
    "toolkit.world.build": ["world"],
    "toolkit.data.synthesize": ["world", "score"],
    "toolkit.data.check": ["world", "score", "check", "convert"],
    "toolkit.data.convert": ["world", "score", "check", "convert"],
    "toolkit.data.analysis.analyze": ["analyze"],
    "toolkit.data.analysis.compare": ["analyze"],
    "toolkit.train.stages": ["train"],
    "toolkit.train.merge": ["train", "merge"],
    "toolkit.evaluate.textvqa": [*EVALUATED, "textvqa"],
    "toolkit.evaluate.generate": [*EVALUATED, "textvqa"],
    "toolkit.evaluate.mmbench": [*EVALUATED, "mmbench"],
    "toolkit.evaluate.upload": [*EVALUATED, "mmbench"],
    "toolkit.evaluate.contamination": ["world", "score", "contamination"],
    "toolkit.evaluate.control": [*EVALUATED, "textvqa"],
    "toolkit.evaluate.compare": [*EVALUATED, "textvqa", "mmbench", "compare"],
    "toolkit.report.page": [*EVALUATED, "textvqa", "mmbench", "compare", "report"],
    "toolkit.report.figures": [*EVALUATED, "textvqa", "mmbench", "compare", "report"],
    "toolkit.bundle.train_script": [*EVALUATED, "textvqa", "mmbench", "train_script"],
    "toolkit.bundle.sources": ["sources"],
    "toolkit.bundle.crate": ENTERED,
    "toolkit.bundle.validate": [*ENTERED, "validate"],
    "toolkit.bundle.pack": [*ENTERED, "validate", "submit"],
}
# Tables whose values are inputs or parameters of the rules; a docstring; answer.py and what it imports, of which training uses the choice
# of a device; the monitor, which only watches.
NAMES = ("assets/__init__", "config/__init__", "scales/__init__", "evaluate/__init__", "mgm/answer", "mgm/generate", "train/monitor")
LEFT_OUT = {Path(f"toolkit/{name}.py") for name in NAMES}


@pytest.mark.parametrize("module", ENTRIES)
def test_no_module_is_forgotten(module, monkeypatch):
    """Whatever a rule's command imports is an input of the rule or of one that it follows from."""
    monkeypatch.chdir(ROOT)
    tree = ast.parse(Path("workflow/rules/common.smk").read_text())
    wanted = [node for node in tree.body if "TOOLS" in ast.unparse(node) and isinstance(node, ast.Assign | ast.FunctionDef)]
    scope = {"Path": Path}
    exec(compile(ast.Module(wanted, []), "common.smk", "exec"), scope)
    named = set(map(Path, scope["tool"](*ENTRIES[module])))
    seen, todo = set(), set(module_files(module))
    assert todo
    while todo:
        seen |= todo
        todo = {found for file in todo for found in imported(file)} - seen
    needed = {file for file in seen if file.parent != Path("toolkit")}
    assert sorted(map(str, needed - named - LEFT_OUT)) == []
