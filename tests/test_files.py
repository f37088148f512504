"""Files that are whole or absent, and the command line's one sentence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import files
from toolkit.__main__ import main
from toolkit.errors import UserError

FULL = Path("/dev/full")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(ValueError, match=r"NaN|JSON"):
        files.write_json(tmp_path / "a.json", float("nan"))
    with pytest.raises(RuntimeError), files.atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_sentence_whatever_the_library_raised(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    target = tmp_path / "weights.bin"

    def write(arguments):
        with files.atomic(target):
            raise RuntimeError("unexpected pos 605248 vs 605136")

    monkeypatch.setattr("toolkit.mgm.cli.parity", write)
    assert main(["mgm", "parity", "x"]) == 1
    assert capsys.readouterr().err == f"error: {target}: the disk is full: free some space and run the same command again\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_under_a_plain_write(capsys, monkeypatch):
    def write(arguments):
        with FULL.open("w") as handle:
            handle.write("x" * 100_000)

    monkeypatch.setattr("toolkit.mgm.cli.parity", write)
    assert main(["mgm", "parity", "x"]) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_malformed_lines_are_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    rows = files.read_jsonl(tmp_path / "rows.jsonl")
    assert next(rows) == {"a": 1}
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3 "):
        next(rows)
    with pytest.raises(UserError, match="does not exist"):
        list(files.read_jsonl(tmp_path / "none.jsonl"))


def test_every_command_explains_itself_and_wrong_usage_is_status_2():
    for noun in ("assets", "bundle", "config", "data", "evaluate", "mgm", "report", "train", "world"):
        with pytest.raises(SystemExit) as leave:
            main([noun, "--help"])
        assert leave.value.code == 0
    with pytest.raises(SystemExit) as leave:
        main(["train", "pretrain"])
    assert leave.value.code == 2


def test_a_missing_file_ends_with_a_sentence_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "toolkit", "data", "convert", "--to", "llava", "--original", "none.json", "rows.jsonl", "out.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_file_that_is_still_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.read_open_jsonl(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert files.read_open_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a"')
    assert files.read_open_jsonl(path) == []
