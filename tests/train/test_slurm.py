"""A training on two nodes of a Slurm job, here with an srun that runs its tasks on this machine."""

import ast
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch
from tiny_training import pretrain

from toolkit.__main__ import main

ROWS = 24  # 3 steps
SRUN = f"""#!{sys.executable}
import json, subprocess, sys
from pathlib import Path
asked = sys.argv[1 : sys.argv.index({sys.executable!r})]
Path(__file__).with_name("asked.json").write_text(json.dumps(asked))
command = sys.argv[1 + len(asked) :]
tasks = [subprocess.Popen(command) for _ in range(int(asked[asked.index("--ntasks") + 1]))]
sys.exit(max(task.wait() for task in tasks))
"""


def arguments(parts, conversations, output: Path) -> list[str]:
    paths = {"samples": conversations.samples, "images": conversations.images, "output": output}
    paths |= {"llm": parts.llm, "clip": parts.clip, "convnext": parts.convnext}
    flags = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    return ["train", "pretrain", "--scale", "tiny", "--seed", "1", *flags]


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with the toolkit, whose scale tiny has two micro-batches in a step, as in `tiny_training`, and
    bin/srun."""
    folder = tmp_path / "project"
    shutil.copytree(
        forks.ROOT / "toolkit", folder / "toolkit", ignore=shutil.ignore_patterns("zoo", "__pycache__")
    )
    scale = folder / "toolkit/scales/tiny.yaml"
    scale.write_text(scale.read_text().replace("micro_batch: 8", "micro_batch: 4"))
    srun = folder / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo alone")
def test_srun_starts_a_torchrun_on_each_node(parts, conversations, project, tmp_path):
    rows = json.loads(conversations.samples.read_text())[:ROWS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    few = SimpleNamespace(samples=tmp_path / "rows.json", images=conversations.images)
    together, alone = tmp_path / "together", tmp_path / "alone"
    command = [sys.executable, "-m", "toolkit", *arguments(parts, few, together)]
    place = {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
    }
    forks.run([*command, "--nodes", "2"], cwd=project, env=os.environ | place, check=True)
    asked = json.loads((project / "bin/asked.json").read_text())
    assert asked[:6] == ["--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1"]
    recorded = json.loads((together / "run.json").read_text())["settings"]["command"]
    assert "--output" in recorded and "--nodes" not in recorded  # as without Slurm

    pretrain(parts, few, alone)
    for step, expected in zip(logged(together), logged(alone), strict=True):
        assert step == pytest.approx(expected, abs=1.5e-4)


def logged(folder: Path) -> list[dict[str, float]]:
    """The steps of a log."""
    lines = (folder / "pretrain.log").read_text().splitlines()
    return [ast.literal_eval(line) for line in lines[:-1]]


def test_outside_of_a_job_it_says_what_to_do(parts, conversations, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main([*arguments(parts, conversations, tmp_path / "out"), "--nodes", "2"]) == 1
    assert "use the profile that `plan --nodes 2 --profile DIR` writes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nodes_share_the_gpus_evenly(parts, conversations, tmp_path, capsys):
    uneven = ["--gpus", "3", "--nodes", "2"]
    assert main([*arguments(parts, conversations, tmp_path / "out"), *uneven]) == 1
    assert "give a multiple of 2" in capsys.readouterr().err
