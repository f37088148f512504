"""A training on two machines, here two torchruns that meet over TCP."""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import pytest
import torch
from tiny_training import job

from toolkit.train import distributed, stages

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="gloo alone")]
ROWS = 64  # 8 steps
# torchrun with a function instead of a program, so that the training's processes are forks, too
NODE = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from tiny_training import job
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args
from toolkit.train import stages
from toolkit.train.trainer import Trainer
step = Trainer._step

def lost(self, number, *rest):
    if number == 3:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, *rest)

def train(llm, clip, convnext, samples, images, output):
    parts = SimpleNamespace(llm=llm, clip=clip, convnext=convnext)
    stages.pretrain(job(parts, SimpleNamespace(samples=samples, images=images), output))

if "LOST" in os.environ:
    Trainer._step = lost
config, _, arguments = config_from_args(parse_args(sys.argv[1:]))
config.start_method = "fork"
elastic_launch(config, train)(*map(Path, arguments[-6:]))
"""


def node(port: int, first: bool, inputs: list[Path], lost: bool = False, **more: Any) -> forks.Fork:
    """A machine with one process of the training's two; the first machine keeps the meeting place. A machine
    that is `lost` dies in the fourth step."""
    torchrun = [sys.executable, "-c", NODE, "--nnodes", "2", "--nproc-per-node", "1"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    several = ["--rdzv-conf", f"is_host={int(first)}", "--max-restarts", "1"]
    place = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | ({"LOST": "1"} if lost else {})
    return forks.Fork([*torchrun, *meeting, *several, "train.py", *inputs], env=os.environ | place, **more)


def test_a_process_that_fails_is_a_sentence_and_a_status(tmp_path):
    failing = "import os, sys; sys.exit('error: no such file' if os.environ['RANK'] == '1' else 0)"
    (tmp_path / "failing.py").write_text(failing)
    several = ["--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    meeting = ["--rdzv-endpoint", f"127.0.0.1:{distributed.free_port()}", "--rdzv-id", "test"]
    torchrun = [sys.executable, "-m", "toolkit.train.torchrun", *several, *meeting]
    process = forks.Fork([*torchrun, str(tmp_path / "failing.py")], stderr=subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "error: no such file" in said and "Traceback" not in said
    assert said.splitlines()[-1] == "error: process 1 of the training ended with status 1: see above"


def losses(folder: Path) -> list[float]:
    """Of the steps in a log."""
    lines = [ast.literal_eval(line) for line in (folder / "pretrain.log").read_text().splitlines()]
    return [line["loss"] for line in lines[:-1]]


def test_a_machine_that_is_lost_comes_back(parts, conversations, tmp_path):
    few = json.loads(conversations.samples.read_text())
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([few[n % len(few)] | {"id": str(n)} for n in range(ROWS)]))
    many = SimpleNamespace(samples=rows, images=conversations.images)
    stages.pretrain(job(parts, many, tmp_path / "alone"))

    together, port = tmp_path / "together", distributed.free_port()
    inputs = [parts.llm, parts.clip, parts.convnext, rows, conversations.images, together]
    first = node(port, True, inputs, stdout=subprocess.PIPE)
    assert node(port, False, inputs, lost=True).wait() == -signal.SIGKILL
    assert list(together.glob("checkpoint-*")) and not (together / "run.json").exists()
    second = node(port, False, inputs)
    said, _ = first.communicate()
    assert (first.returncode, second.wait()) == (0, 0)
    assert said.count("continuing together after step") == 1
    assert losses(together) == pytest.approx(losses(tmp_path / "alone"), abs=1.5e-4)
