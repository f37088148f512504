"""The workflow as a whole: clean, one clear sentence for each mistake before any job, and failures that stay
failures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.__main__ import main

ROOT = Path(__file__).parents[2]


def test_lint(project):
    status, printed = project.snakemake("--lint")
    assert status == 0, printed


def test_format():
    files = ["Snakefile", *sorted(map(str, (ROOT / "workflow/rules").glob("*.smk")))]
    tools = Path(sys.executable).parent  # snakefmt looks for shfmt on the PATH
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [tools / "snakefmt", "--check", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scale", ["baseline_10k", "track_200k"])
def test_the_full_scales_have_the_same_rules(project, scale):
    jobs = project.jobs("--forceall", "--configfile", f"workflow/config/{scale}.yaml")
    tiny = project.jobs("--forceall")
    assert {job for job in jobs if "download" not in job} == {job for job in tiny if "download" not in job}
    assert "download gemma-2b-it" in jobs and "download world-gemma" in tiny


def test_a_training_gets_what_the_profile_for_slurm_asks_for(project):
    """Beside --profile Snakemake would read profiles/default, too, whose single GPU bounds every job."""
    big = "workflow/config/baseline_10k.yaml"
    written = project.path / "written/config.yaml"
    several = ["--card", "h100", "--gpus", "4", "--nodes", "2", "--profile", str(written.parent)]
    assert main(["plan", "--config", str(ROOT / big), *several]) == 0
    # the plugin is an extra
    written.write_text(written.read_text().replace("executor: slurm", "cores: 8"))
    status, printed = project.snakemake(
        "submit.zip", "--forceall", "--dry-run", "--configfile", big, "--workflow-profile", "written"
    )
    assert status == 0, printed
    asked = re.findall(
        r"^rule (?:pretrain|finetune):$.*?^    resources: (.*?)$", printed, re.MULTILINE | re.DOTALL
    )
    assert len(asked) == 4 and all("gpu=8, nodes=2, mpi=srun" in resources for resources in asked)
    training = r"^rule (?:pretrain|finetune):$(?:\n    .*)*?\n    threads: 8$"
    assert len(re.findall(training, printed, re.MULTILINE)) == 4
    commands = re.findall(r"python -m toolkit train (?:pretrain|finetune) .*", printed)
    assert len(commands) == 4
    assert all(re.search(r"--gpus 8 +--nodes 2 ", command) for command in commands)


def test_a_part_of_a_run_is_a_target(project):
    """All experiments by the part's name, one of them with its own behind it."""
    data = {"check", "contamination", "convert", "score", "synthesize"}
    training = {"pretrain", "finetune", "merge"}
    parts = {
        "data": data,
        "train": data - {"contamination"} | training,
        "evaluate": data - {"contamination"} | training | {"eval_textvqa", "eval_mmbench"},
    }
    for part, rules in parts.items():
        experiments = {
            name: {
                job for job in project.jobs("--forceall", target=f"{part}-{name}") if "download" not in job
            }
            for name in ("baseline", "synth")
        }
        assert {job.split()[0] for job in experiments["synth"]} == rules | {f"{part}-synth"}
        assert not any("baseline" in job for job in experiments["synth"])
        whole = {job for job in project.jobs("--forceall", target=part) if "download" not in job}
        targets = {f"{part}-baseline", f"{part}-synth"}
        assert whole - {part} == set.union(*experiments.values()) - targets


def test_rules_with_a_model_take_turns_on_the_gpu(project):
    """What is not said to need the GPU runs beside a training, which plans with what is free."""
    arguments = ("--forceall", "--dry-run", "--configfile", "workflow/config/rehearsal.yaml")
    status, printed = project.snakemake("submit.zip", *arguments)
    assert status == 0, printed
    jobs = re.findall(r"rule (\w+):\n(?:    .*\n)*?    resources: (.*)", printed)
    models = {"score", "synthesize", "pretrain", "finetune", "merge", "eval_textvqa", "eval_mmbench"}
    assert {rule for rule, resources in jobs if "gpu=1" in resources} == models


def test_the_scheduler_runs_only_when_a_job_ends(project):
    """For its limit of jobs a second Snakemake's runs each second, and more often with each job that ends."""
    (project.path / "slow").write_text("2")
    arguments = ("--forcerun", "pretrain", "--until", "pretrain", "--cores", "1", "--verbose")
    status, printed = project.snakemake("submit.zip", *arguments)
    assert status == 0, printed
    ended = len(re.findall("^Finished jobid", printed, re.MULTILINE))
    assert ended > 1 and printed.count("Ready jobs: ") <= ended


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("finetune={lora_rnak: 8}", "finetune.lora_rnak: unknown key; did you mean lora_rank"),
        ("seeds=abc", "seeds: expected a valid list, not 'abc'"),
        (
            "experiments={synth: {recipe: absent}}",
            "experiments.synth.recipe: 'absent' is not a recipe in solution/recipes",
        ),
        ("assets={llm: world-gema}", "assets.llm: 'world-gema' is not an asset"),
    ],
)
def test_a_mistake_in_the_configuration_ends_before_any_job(project, config, sentence):
    status, printed = project.snakemake("submit.zip", "--config", config)
    assert status == 1
    assert printed.count(sentence) == 1 and "Traceback" not in printed
    assert "Building DAG" not in printed


def test_numbers_of_the_command_line_are_numbers(project):
    """In a section Snakemake takes them for texts."""
    config = ("--config", "seeds=[7]", "finetune={lora_rank: 8, lora_dropout: 0.25}")
    status, printed = project.snakemake("submit.zip", "--dry-run", "--printshellcmds", *config)
    assert status == 0, printed
    words = " ".join(printed.replace("\\\n", " ").split())
    assert "--lora-rank 8" in words and "--lora-dropout 0.25" in words and "--seed 7" in words


def test_a_failed_command_is_named_and_leaves_no_output(project):
    (project.path / "fail").write_text("merge")
    status, printed = project.snakemake("submit.zip", "--config", "seeds=[7]", "--keep-going")
    assert status == 1
    assert "error: the disk is on fire" in printed
    assert not (project.path / "output/training_dirs/MGM-Tiny-Finetune-synth/merge.json").exists()
    assert "disk is on fire" in (project.path / "output/logs/merge/MGM-Tiny-Finetune-synth.log").read_text()
    (project.path / "fail").unlink()
    left = project.jobs("--config", "seeds=[7]")
    assert {"merge synth", "eval_mmbench synth", "submit"} <= left and "finetune synth" not in left


UNWRITABLE = {
    "the disk is full: free some space": ("toolkit/files.py", "FULL = 1 << 20", "FULL = 1 << 60"),
    "this folder cannot be written: make it writable": (
        "workflow/rules/common.smk",
        'os.access(".", os.W_OK)',
        "False",
    ),
}


@pytest.mark.parametrize("sentence", UNWRITABLE)
def test_where_nothing_can_be_written_a_run_is_refused_before_it_locks_the_folder(project, sentence):
    file, before, after = UNWRITABLE[sentence]
    project.replace(file, before, after)
    status, printed = project.snakemake("submit.zip", "--config", "seeds=[7]")
    assert status == 1 and "Traceback" not in printed
    assert printed.count(f"{sentence} and run the same command again") == 1
    project.replace(file, after, before)
    assert project.snakemake("submit.zip", "--dry-run")[0] == 0  # nothing is locked


@pytest.mark.parametrize("sentence", UNWRITABLE)
def test_where_nothing_can_be_written_a_dry_run_and_the_lists_work(project, sentence):
    project.replace(*UNWRITABLE[sentence])
    before = {path: path.stat().st_mtime_ns for path in project.path.joinpath(".snakemake").rglob("*.pkl")}
    assert "submit" in project.jobs("--config", "seeds=[7]")
    for command in (["--list"], ["--summary"], ["--rulegraph"]):
        status, printed = project.snakemake(*command)
        assert status == 0, printed
    after = {path: path.stat().st_mtime_ns for path in project.path.joinpath(".snakemake").rglob("*.pkl")}
    assert after == before


@pytest.mark.parametrize("verb", ["validate", "submit", "crate"])
def test_after_a_failure_the_archive_of_an_earlier_state_does_not_pass_for_done(project, verb):
    assert (project.path / "submit.zip").exists()
    (project.path / "fail").write_text(verb)
    config = ("--config", "report={title: another}", "seeds=[7]")
    status, printed = project.snakemake("submit.zip", *config)
    assert status == 1 and "error: the disk is on fire" in printed
    assert not (project.path / "submit.zip").exists()
    (project.path / "fail").unlink()
    assert {verb, "submit"} <= project.jobs(*config)
    assert project.snakemake("submit.zip", *config)[0] == 0
    assert project.jobs(*config) == set()


def test_the_figure_of_a_training_needs_the_training_alone(project):
    status, printed = project.snakemake("output/reports/training-synth.svg")
    assert status == 0 and "rule training_figure" in printed and "1 of 1 steps" in printed, printed
    assert project.jobs() == set()  # nothing of the entry follows from it


def test_the_overview_follows_from_the_results_and_its_own_code(project):
    target = "output/reports/index.html"
    status, printed = project.snakemake(target)
    assert status == 0 and "rule overview" in printed and "1 of 1 steps" in printed, printed
    assert project.jobs() == set()  # nothing of the entry follows from it
    project.append("toolkit/report/overview.html.j2")
    assert project.jobs(target=target) == {"overview"}
    project.replace(
        "workflow/config/tiny.yaml", "textvqa:\n    batch_size: 16", "textvqa:\n    batch_size: 8"
    )
    assert {"eval_textvqa synth", "compare", "overview"} <= project.jobs(target=target)


def test_snakemakes_own_report_holds_the_results(project):
    """It is made without network, of what was built."""
    assert project.snakemake("output/reports/index.html")[0] == 0
    status, printed = project.snakemake("--report", "report.html", "output/reports/index.html", "submit.zip")
    assert status == 0, printed
    text = (project.path / "report.html").read_text()
    for name in ("output/reports/index.html", "output/reports/report.md", "output/reports/losses.svg"):
        assert f'"{name}"' in text
    assert project.jobs() == set()


def test_the_look_at_the_data_needs_the_data_alone(project):
    status, printed = project.snakemake(
        "output/reports/data-synth/index.html", "output/reports/data-synth/compare.json"
    )
    assert status == 0 and "2 of 2 steps" in printed, printed
    assert project.jobs() == set()  # nothing of the entry follows from it
