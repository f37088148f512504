"""The monitor: its lines, what a kill and a resumed run leave, its end."""

import itertools
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from toolkit.files import read_open_jsonl as read
from toolkit.train import monitor
from toolkit.train.monitor import Monitor, Start


def wait_for(condition) -> None:
    for _ in range(30_000):  # 300 s
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing was written")


def test_lines_say_what_was_done(tmp_path, monkeypatch):
    clock = itertools.count()  # a line every second
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    with Monitor(tmp_path / "folder" / "monitor.jsonl", every=0.05) as watched:
        for seconds in (60.0, 2.0, 2.0):
            watched.add(8, seconds)
        wait_for(lambda: len(read(watched.path)) >= 2)
        watched.add(4, 1.0)
    lines = read(watched.path)
    assert lines[-1]["steps"] == 4
    assert lines[-1]["step_seconds"] == 2.0  # of 2, 2 and 1: kernels are compiled in the first
    assert [line["seconds"] for line in lines] == list(range(1, len(lines) + 1))
    assert sum(line["samples_per_second"] for line in lines) == 28
    assert all(0.01 < line["host_gib"] < 1000 for line in lines)
    assert not [thread for thread in threading.enumerate() if thread.name == "monitor"]


def test_the_start_is_told_part_by_part(monkeypatch):
    clock = iter([107.0, 109.5, 140.0])
    monkeypatch.setattr(monitor, "time", SimpleNamespace(time=lambda: next(clock)))
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 100.0)
    began = Start()
    for part in ("imports", "model", "first step"):
        began.end(part)
    assert str(began) == "40 s from the start to the first step: imports 7, model 2, first step 30"


def test_host_memory_counts_children(tmp_path):
    """A child that holds 200 MB shows."""
    watched = Monitor(tmp_path / "monitor.jsonl")
    watched.start()
    program = "import sys; block = bytearray(200 << 20); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert watched._resident() - psutil.Process().memory_info().rss > 190 << 20
    child.communicate()
    watched.stop()


def test_a_resumed_run_appends_and_drops_a_line_cut_short(tmp_path):
    path = tmp_path / "monitor.jsonl"
    whole = {"seconds": 40.0, "steps": 7, "samples_per_second": 1.0, "host_gib": 1.0}
    path.write_text(json.dumps(whole) + "\n" + '{"seconds": 50.0, "ste')
    resumed = Monitor(path)
    resumed.start(steps=5)  # the last checkpoint was made before the last line
    resumed.add(8, 1.0)
    resumed.stop()
    first, second = read(path)
    assert first == whole
    assert second["steps"] == 6 and second["seconds"] >= 40.0


def test_a_new_run_begins_a_new_file(tmp_path):
    path = tmp_path / "monitor.jsonl"
    path.write_text(json.dumps({"seconds": 40.0, "steps": 7}) + "\n")
    with Monitor(path):
        pass
    assert [line["steps"] for line in read(path)] == [0]


def test_a_full_disk_does_not_end_the_training(tmp_path, capsys):
    watched = Monitor(tmp_path / "monitor.jsonl", every=0.01)
    watched.start()
    watched._line = lambda: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    wait_for(lambda: not watched._thread.is_alive())
    watched.stop()
    assert "monitor.jsonl ends here: [Errno 28]" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="reads a GPU's memory")
def test_gpu_lines(tmp_path):
    block = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    with Monitor(tmp_path / "monitor.jsonl") as watched:
        pass
    line = read(watched.path)[-1]
    assert line["allocated_gib"] >= 0.25 and line["peak_gib"] >= line["allocated_gib"]
    assert line["device_used_gib"] >= line["reserved_gib"] >= line["allocated_gib"]
    assert ("power_watts" in line) <= (monitor.pynvml is not None)
    del block
