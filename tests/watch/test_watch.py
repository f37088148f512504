"""What `watch` shows of a recorded run, cut off anywhere, and of a real one that goes on, ends or is
killed."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.__main__ import main
from toolkit.progress import Progress, last_seen
from toolkit.train.monitor import Monitor
from toolkit.watch import estimate, run, stage
from toolkit.watch.frame import frame

ROOT = Path(__file__).parents[2]
# `make submit.zip` at the tiny scale, without the lines of inputs, outputs, reasons and commands
RECORDED = (Path(__file__).parent / "recorded.txt").read_text()
PRETRAIN = "pretrain/MGM-Tiny-Pretrain-synth"
SNAKEFILE = """
rule second:
    input: "first.txt"
    output: "second.txt"
    log: "output/logs/second.log"
    benchmark: "output/benchmarks/second.tsv"
    shell:
        "echo 'waiting: 5/10 (50 %), 0:01:00 left' | tee {log}; "
        "while [ ! -e go ]; do sleep 0.1; done; $(cat go)"

rule first:
    output: "first.txt"
    benchmark: "output/benchmarks/first.tsv"
    shell: "touch {output}"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with what `plan` needs to know of the tiny configuration."""
    for name in ("solution", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_log(text: str, name: str = "2026-11-27T003302.042387") -> None:
    run.LOGS.mkdir(parents=True, exist_ok=True)
    (run.LOGS / f"{name}.snakemake.log").write_text(text)


def until(event: str) -> str:
    """The recorded log up to the block of an event, that block included."""
    end = RECORDED.index("\n[", RECORDED.index(event))
    return RECORDED[: end + 1]


def shown(state: str, now: float | None = None) -> str:
    """The picture of the latest run, as text."""
    latest = run.latest()
    now = now or (latest.last if latest else 0.0)
    outlook = estimate.outlook_of(tuple(latest.configs), latest.done) if latest else None
    screen = Console(width=160)
    with screen.capture() as captured:
        screen.print(frame(latest, state, outlook, now))
    return captured.get()


def row(text: str, first: str) -> list[str]:
    """Cells of a table's row."""
    line = next(line for line in text.splitlines() if re.match(rf"│ {re.escape(first)} +│", line))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_a_finished_run(project, capsys):
    write_log(RECORDED)
    assert main(["watch"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("finished: 27 of 27 jobs done in 0:13:59\n")
    assert row(text, "score") == ["2", "", "", "", "0:01:31"] and "left" not in text and "\x1b" not in text
    assert sum(int(row(text, rule)[0]) for rule in run.latest().counts) == 27


def test_the_middle_of_a_run(project):
    write_log(until(f"benchmark: output/benchmarks/{PRETRAIN}.tsv"))
    text = shown("running", run.latest().last + 30)
    assert "jobs done after" in text and row(text, PRETRAIN)[0] == "0:00:30"
    assert row(text, "pretrain")[1] == "1" and row(text, "submit") == ["", "", "", "1", ""]
    assert run.latest().done == int(re.findall(r"^(\d+) of 27 steps", until(PRETRAIN), re.MULTILINE)[-1])


def test_every_prefix_of_a_log_is_read(project):
    """A log may end anywhere: the last line is being written."""
    for end in range(0, len(RECORDED), 97):
        write_log(RECORDED[:end])
        latest = run.latest()
        started, done = RECORDED[:end].count("jobid: "), RECORDED[:end].count(" (Rule: ")
        assert done - 1 <= latest.done <= done and started - done - 1 <= len(latest.jobs) <= started
        assert latest.waiting().total() >= latest.counts.total() - started


def test_the_latest_log_counts(project):
    write_log(RECORDED)
    write_log(until("Finished jobid: 33"), "2026-11-28T003302.042387")
    assert run.latest().done == 1


def test_a_training_shows_step_loss_and_speed(project, capsys):
    write_log(until(f"benchmark: output/benchmarks/{PRETRAIN}.tsv"))
    job = next(job for job in run.latest().jobs.values() if job.name == PRETRAIN)
    Path(job.log).parent.mkdir(parents=True)
    progress = Progress("pretrain MGM-Tiny-Pretrain-synth", 676, interval=0)
    progress.step(13, note="loss 6.912")
    Path(job.log).write_text("imports\n" + capsys.readouterr().err + "pretrain MGM-Tiny-Pretrain-synth: 14/6")
    folder = stage.TRAINED / "MGM-Tiny-Pretrain-synth"
    folder.mkdir(parents=True)
    (folder / "pretrain.log").write_text(
        "{'loss': 9.5, 'epoch': 0.1}\n{'loss': 6.9118, 'epoch': 0.2}\n{'loss': 1."
    )
    with Monitor(folder / "monitor.jsonl", every=0.01) as monitor:
        monitor.add(800, 0.5)
    speed = float(re.findall(r'"samples_per_second": ([\d.]+)', (folder / "monitor.jsonl").read_text())[-1])
    with (folder / "monitor.jsonl").open("a") as file:
        file.write('{"seconds": 9, "samples_per_sec')
    cells = row(shown("running", time.time()), PRETRAIN)
    assert cells[1:5] == ["13", "676", "6.912", f"{speed:.1f}"] and cells[5] != "?"
    # what an earlier attempt left behind says nothing of this one
    for path in (Path(job.log), folder / "pretrain.log", folder / "monitor.jsonl"):
        os.utime(path, (job.started - 60, job.started - 60))
    assert row(shown("running", job.started + 1), PRETRAIN)[1:5] == ["", "", "", ""]


def test_the_whole_takes_what_plan_predicts_at_the_pace_so_far(project):
    cut = until(f"benchmark: output/benchmarks/{PRETRAIN}.tsv")
    write_log(cut)
    latest = run.latest()
    outlook = estimate.outlook_of(tuple(latest.configs), latest.done)
    predicted = {each.job.name: each.seconds for each in outlook.predictions}
    done = [job for job in latest.jobs.values() if not job.running]
    pace = sum(job.ended - job.started for job in done) / sum(predicted[job.name] for job in done)
    said = {
        next(number for number, job in latest.jobs.items() if job.running): stage.Stage(
            seconds=50.0, whole=True
        )
    }
    needed, whole, unknown = estimate.estimate(latest, said, outlook, latest.last)
    unstarted = predicted.keys() - {job.name for job in latest.jobs.values()}
    rules = {each.job.name: each.job.rule for each in outlook.predictions}
    rest = sum(predicted[name] for name in unstarted if rules[name] in latest.counts)
    assert list(needed.values()) == [50.0] and unknown == [] and pace != 1
    assert whole == pytest.approx((50 + pace * rest) / outlook.card.together)


def test_a_job_that_counts_several_things_takes_what_plan_predicts():
    job = run.Job("score", 100.0)
    assert estimate.job_seconds(job, stage.Stage(1, 2, seconds=5.0), 60.0, 120.0) == 40.0
    assert estimate.job_seconds(job, stage.Stage(1, 2, seconds=50.0), 60.0, 120.0) == 50.0
    assert estimate.job_seconds(job, stage.Stage(), None, 120.0) is None


def test_rules_without_a_prediction_are_named(project):
    write_log(
        until("Finished jobid: 33").replace("submit               1", "submit               1\nanalyze   2")
    )
    assert re.search(r"about [\d:]+ left, without analyze\n", shown("running"))


@pytest.mark.parametrize("command", ["snakemake --config scale=tiny", "snakemake -C scale=tiny"])
def test_a_configuration_that_is_not_in_a_file_has_no_prediction(project, command):
    write_log(until("Finished jobid: 33").replace("snakemake submit.zip --cores 1", command))
    assert "time left unknown" in shown("running")


def test_a_configuration_of_the_command_line_is_read(project):
    """Snakemake writes the default's path and that of --configfile in two forms."""
    write_log(until("Finished jobid: 33"))
    default = shown("running")
    path = ROOT / "workflow/config/tiny.yaml"
    write_log(until("Finished jobid: 33").replace("['workflow/config/tiny.yaml']", f"[PosixPath('{path}')]"))
    assert run.latest().configs == [str(path)] and shown("running") == default


def test_a_failed_job_and_its_second_attempt(project):
    failed = """[Fri Nov 27 00:33:09 2026]
Error in rule score:
    message: None
    jobid: 28
    output: output/processed_data/baseline/scores.json
    log: output/logs/score/baseline.log (check log file(s) for error details)

"""
    write_log(until("localrule score") + failed + "Complete log(s): x\n")
    text = shown(run.latest().state)
    assert text.startswith("failed: 1 of 27 jobs") and row(text, "score") == ["", "", "1", "1", ""]
    assert "score/baseline failed: see output/logs/score/baseline.log" in text
    again = until("localrule score").rpartition("\n[")[2]
    write_log(until("localrule score") + failed + "Trying to restart job 28.\n[" + again)
    assert row(shown("running"), "score") == ["", "1", "", "1", ""]


def test_what_was_broken_off_is_named(project):
    write_log(until(f"benchmark: output/benchmarks/{PRETRAIN}.tsv") + "Complete log(s): x\n")
    assert run.latest().state == "stopped"
    write_log(until(f"benchmark: output/benchmarks/{PRETRAIN}.tsv"))
    assert run.latest().state == "interrupted"
    text = shown("interrupted")
    assert "interrupted, no Snakemake on this machine" in text and f"{PRETRAIN} was not finished: see" in text


def test_names_cannot_steer_the_terminal(project, capsys):
    write_log(
        until("localrule score").replace("output/benchmarks/score", "output/benchmarks/\x1b]0;owned\x07")
    )
    assert main(["watch", "--once"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["watch", "--directory", str(tmp_path)]) == 0
    assert f"no run of Snakemake in {tmp_path}" in capsys.readouterr().out.replace("\n", "")
    assert main(["watch", "--directory", str(tmp_path / "gone")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_whole_lines_of_progress_count(capsys):
    for total in (1, 3):
        Progress("a: b", total, interval=0).step(note="loss 1.0")
    text = capsys.readouterr().err
    assert (last_seen(text).label, last_seen(text).done, last_seen(text).total) == ("a: b", 1, 3)
    assert last_seen(text[:-1]).total == 1 and last_seen("") is None


@pytest.fixture
def going(tmp_path):
    """A real run of Snakemake whose second job waits until the file `go` says what to do."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "second.txt", "--cores", "1"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # tests in the background of a shell ignore SIGINT, and what they start would, too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "output/logs/second.log").exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield tmp_path, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def once(folder: Path) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-m", "toolkit", "watch", "--once", "--directory", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_real_run_goes_on_and_ends(going):
    folder, process = going
    before = sorted(path for path in folder.rglob("*"))
    text = once(folder)
    assert text.startswith("running: 1 of 2 jobs done after") and row(text, "second")[1:3] == ["5", "10"]
    assert sorted(path for path in folder.rglob("*")) == before
    (folder / "go").write_text("touch second.txt")
    process.wait()
    text = once(folder)
    assert text.startswith("finished: 2 of 2 jobs done in") and row(text, "second")[:4] == ["1", "", "", ""]


def test_in_a_terminal_it_goes_on_until_the_run_is_over(going):
    folder, _ = going
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "toolkit", "watch", "--directory", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=end, stderr=end) as watching:
        os.close(end)
        screen = b""
        while b"running: 1 of 2" not in re.sub(rb"\x1b\[[\d;]*m", b"", screen):
            screen += os.read(terminal, 1 << 16)
        (folder / "go").write_text("touch second.txt")
        with suppress(OSError):  # what a terminal gives whose other end is closed
            while part := os.read(terminal, 1 << 16):
                screen += part
    os.close(terminal)
    text = re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", screen).decode()
    assert watching.returncode == 0 and "finished: 2 of 2 jobs done" in text.rpartition("running: 1 of 2")[2]


def test_a_real_run_fails(going):
    folder, process = going
    (folder / "go").write_text("false")
    process.wait()
    assert "second failed: see output/logs/second.log" in once(folder)


def test_a_real_run_is_killed(going):
    folder, process = going
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert once(folder).startswith(
        "interrupted, no Snakemake on this machine writes its log any more: 1 of 2"
    )


def test_a_real_run_is_stopped_by_the_user(going):
    folder, process = going
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    assert once(folder).startswith(("stopped: 1 of 2", "failed: 1 of 2"))
