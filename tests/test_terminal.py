"""Texts of others cannot steer the terminal, and no encoding makes a message a traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.__main__ import main
from toolkit.terminal import Guarded, printable

ROOT = Path(__file__).parents[1]
HOSTILE = "a\x1b[2Kb\x9b31mc\u202ed\re\x07\x00\u2028"


def test_what_steers_a_terminal_is_escaped():
    assert printable(HOSTILE) == "a\\x1b[2Kb\\x9b31mc\\u202ed\\x0de\\x07\\x00\\u2028"
    assert printable("two\nlines\tand 中文 é 😀") == "two\\x0alines\\x09and 中文 é 😀"
    stream = io.StringIO()
    print(HOSTILE, "中文\tx", file=Guarded(stream))
    assert stream.getvalue() == f"{printable(HOSTILE)} 中文\tx\n"


def test_errors_show_foreign_texts_escaped(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text('"\\e[2K\\e[1Gall is well": 1\n')
    assert main(["config", "check", str(file)]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\\x1b[2K" in error


def test_errors_do_not_quote_a_text_without_end(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(f"? {'x' * 100_000}\n: 1\nother: 2\n")
    assert main(["config", "check", str(file)]) == 1
    error = capsys.readouterr().err
    assert len(error) < 5000 and "…" in error and "other" in error


def test_a_name_that_the_encoding_lacks_is_escaped(tmp_path):
    file = tmp_path / "配置.yaml"
    file.write_text("{}\n", encoding="utf-8")
    command = [sys.executable, "-m", "toolkit", "config", "check", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("/\\u914d\\u7f6e.yaml is in order\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_shell_closed_end_nothing(tmp_path, closed):
    status = tmp_path / "status"
    command = (
        f"{sys.executable} -m toolkit config check workflow/config/tiny.yaml {closed}; echo $? >{status}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (status.read_text(), done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_a_lack_of_memory_is_a_sentence(monkeypatch, capsys, error):
    def check(arguments):
        raise error

    monkeypatch.setattr("toolkit.config.cli.check", check)
    assert main(["config", "check", "workflow/config/tiny.yaml"]) == 1
    assert "error: there is not enough memory" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "toolkit", "config", "check", "workflow/config/tiny.yaml"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() in (0, 1)
