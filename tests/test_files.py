"""Files that are whole or absent, and the command line's one sentence."""

import codecs
import gzip
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from toolkit import arguments, files
from toolkit.__main__ import main
from toolkit.errors import UserError
from toolkit.parse import YAML_BYTES

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


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in {tmp_path: "a folder", tmp_path / "pipe": "a device or a pipe"}.items():
        with pytest.raises(UserError, match=f"{path} is {kind}"):
            files.write_text(path, "text")
        with pytest.raises(UserError, match=f"{path} is {kind}"):
            arguments.assert_apart(Namespace(output=arguments.Output(path)))
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    files.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").read_text() == "text"


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_the_umask_decides_who_may_read(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "a.json", 1)
        with files.atomic(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "a.safetensors")]
    assert modes == [0o666 & ~mask] * 2


def test_a_full_disk_is_one_sentence_whatever_the_library_raised(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    target = tmp_path / "weights.bin"

    def write(arguments):
        with files.atomic(target):
            raise RuntimeError("unexpected pos 605248 vs 605136")

    monkeypatch.setattr("toolkit.mgm.cli.parity", write)
    assert main(["mgm", "parity", "x"]) == 1
    assert (
        capsys.readouterr().err
        == f"error: {target}: the disk is full: free some space and run the same command again\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_under_a_plain_write(capsys, monkeypatch):
    def write(arguments):
        with FULL.open("w") as handle:
            handle.write("x" * 100_000)

    monkeypatch.setattr("toolkit.mgm.cli.parity", write)
    assert main(["mgm", "parity", "x"]) == 1
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_under_a_copy_is_that_of_the_copy(tmp_path, capsys, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/photo.jpg").write_bytes(b"x" * 100_000)
    (tmp_path / "full").symlink_to(FULL)
    copies = {
        "of a file": lambda arguments: shutil.copyfile(tmp_path / "photos/photo.jpg", tmp_path / "full"),
        "of a folder": lambda arguments: shutil.copytree(
            tmp_path / "photos",
            tmp_path / "new",
            copy_function=lambda source, target: shutil.copyfile(source, FULL),
        ),
    }
    for copy in copies.values():
        monkeypatch.setattr("toolkit.mgm.cli.parity", copy)
        assert main(["mgm", "parity", "x"]) == 1
        printed = capsys.readouterr().err
        assert printed.endswith(": the disk is full: free some space and run the same command again\n")
        assert "photos" not in printed


def test_a_name_that_the_locale_cannot_hold_is_one_sentence(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "\u00e9t\u00e9.jpg", "caption": "x"}', encoding="utf-8")
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "toolkit",
            "data",
            "import",
            str(tmp_path / "rows.jsonl"),
            str(tmp_path / "new"),
        ],
        env=os.environ | plain,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.endswith(
        "a file name in this locale's encoding, ascii: run the same command with LC_ALL=C.UTF-8\n"
    )


def test_what_an_interruption_broke_is_an_interruption(capsys, monkeypatch):
    def broken(arguments):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise OSError(9, "Bad file descriptor") from None

    monkeypatch.setattr("toolkit.mgm.cli.parity", broken)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        assert main(["mgm", "parity", "x"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted: run the same command again to continue\n"


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
    command = [
        sys.executable,
        "-m",
        "toolkit",
        "data",
        "convert",
        "--to",
        "llava",
        "--original",
        "none.json",
        "rows.jsonl",
        "out.json",
    ]
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


ROWS = b'{"a": 1}\n\n  \n{"a": "\xe4\xb8\xad"}\r\n{"a": 3}'


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress], ids=["plain", "gzip", "zstd"]
)
@pytest.mark.parametrize("begin", [b"", codecs.BOM_UTF8], ids=["", "BOM"])
def test_json_lines_are_read_plain_and_compressed_whatever_the_file_is_called(tmp_path, pack, begin):
    (tmp_path / "rows.jsonl").write_bytes(pack(begin + ROWS))
    assert list(files.read_jsonl(tmp_path / "rows.jsonl")) == [{"a": 1}, {"a": "中"}, {"a": 3}]
    assert [number for number, _ in files.read_lines(tmp_path / "rows.jsonl")] == [1, 4, 5]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
@given(data=st.data())
def test_damaged_compression_is_named_or_read(pack, data):
    content = bytearray(pack(ROWS))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(bytes(content))
        try:
            list(files.read_jsonl(path))
        except UserError as error:
            assert str(error).startswith(str(path))


def test_a_line_without_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LINE", 9)
    (tmp_path / "rows.jsonl").write_bytes(b"[1]\n" + b"1" * 10)
    with pytest.raises(UserError, match=r"rows.jsonl, line 2 has more than 9 bytes"):
        list(files.read_jsonl(tmp_path / "rows.jsonl"))


def test_malformed_files_are_named_with_their_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 1, "a": 2}\n')
    (tmp_path / "big.yaml").write_text(" " * (YAML_BYTES + 1))
    with pytest.raises(UserError, match=r"rows.jsonl, line 2 is not valid JSON: the key a is there twice"):
        list(files.read_jsonl(tmp_path / "rows.jsonl"))
    with pytest.raises(UserError, match=r"rows.jsonl is not valid JSON: Extra data"):
        files.read_json(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=r"big.yaml has \d+ bytes, at most"):
        files.read_yaml(tmp_path / "big.yaml")
    for read in (files.read_json, files.read_yaml, lambda path: list(files.read_jsonl(path))):
        with pytest.raises(UserError, match="absent does not exist"):
            read(tmp_path / "absent")
