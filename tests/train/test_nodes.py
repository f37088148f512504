"""A training on two machines, here two torchruns that meet over TCP."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from tiny_training import job

from toolkit.train import distributed, stages

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="gloo alone")]
ROWS = 480  # 60 steps: time to lose a machine
TRAIN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tiny_training import job
from toolkit.train import stages
llm, clip, convnext, samples, images, output = map(Path, sys.argv[1:])
parts = SimpleNamespace(llm=llm, clip=clip, convnext=convnext)
stages.pretrain(job(parts, SimpleNamespace(samples=samples, images=images), output))
"""


def node(port: int, first: bool, argv: list[str], **more: Any) -> subprocess.Popen:
    """A machine with one process of the training's two; the first machine keeps the meeting place."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    several = ["--rdzv-conf", f"is_host={int(first)}", "--max-restarts", "1"]
    place = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])}
    place |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*torchrun, *meeting, *several, *argv], env=os.environ | place, **more)


def lose(machine: subprocess.Popen) -> None:
    """Kill a machine's processes."""
    process = psutil.Process(machine.pid)
    for each in [process, *process.children(recursive=True)]:
        each.kill()
    machine.wait()


def losses(folder: Path) -> list[float]:
    """Of the steps in a log."""
    lines = [ast.literal_eval(line) for line in (folder / "pretrain.log").read_text().splitlines()]
    return [line["loss"] for line in lines[:-1]]


def test_a_machine_that_is_lost_comes_back(parts, conversations, tmp_path):
    few = json.loads(conversations.samples.read_text())
    rows, script = tmp_path / "rows.json", tmp_path / "train.py"
    rows.write_text(json.dumps([few[n % len(few)] | {"id": str(n)} for n in range(ROWS)]))
    script.write_text(TRAIN)
    many = SimpleNamespace(samples=rows, images=conversations.images)
    stages.pretrain(job(parts, many, tmp_path / "alone"))

    together, port = tmp_path / "together", distributed.free_port()
    inputs = [parts.llm, parts.clip, parts.convnext, rows, conversations.images, together]
    argv = [str(script), *map(str, inputs)]
    first = node(port, True, argv, stdout=subprocess.PIPE, text=True)
    second = node(port, False, argv)
    while not list(together.glob("checkpoint-*")):
        assert first.poll() is None and second.poll() is None
        time.sleep(0.01)
    lose(second)
    assert not (together / "run.json").exists()
    second = node(port, False, argv)
    said, _ = first.communicate()
    assert (first.returncode, second.wait()) == (0, 0)
    assert said.count("continuing together after step") == 1
    assert losses(together) == pytest.approx(losses(tmp_path / "alone"), abs=1.5e-4)
