"""submit.zip: same bytes every time, only from a valid entry, whole or absent."""

import errno
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from entry_tree import ENTRY, EntryTree

from toolkit.__main__ import main
from toolkit.bundle import pack
from toolkit.bundle.entry import Entry
from toolkit.contest import ruleset
from toolkit.errors import UserError
from toolkit.files import sha256

FINETUNE = EntryTree().finetune


def validate() -> int:
    return main(["bundle", "validate", *ENTRY, "--output", "output/reports/validation.json"])


def submit() -> int:
    return main(["bundle", "submit", *ENTRY, "--output", "submit.zip"])


@pytest.fixture
def validated(tree):
    assert validate() == 0
    return tree


def test_same_bytes_again(validated, tmp_path, monkeypatch, capsys):
    """Another folder, another order of creation, other times and other rights of the files: the same
    archive."""
    assert submit() == 0
    first = sha256("submit.zip")
    assert first in capsys.readouterr().out
    other = tmp_path / "another place"
    for path in sorted(
        (path for path in validated.rglob("*") if path.is_file() and path.name != "submit.zip"), reverse=True
    ):
        target = other / path.relative_to(validated)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o600)
        os.utime(target, (10**9, 10**9))
    monkeypatch.chdir(other)
    assert submit() == 0
    assert sha256("submit.zip") == first


def test_members(validated):
    Path("solution/.hidden").write_text("x")
    Path("solution/__pycache__").mkdir()
    Path("solution/__pycache__/a.pyc").write_text("x")
    checkpoint = Path(FINETUNE, "checkpoint-100")
    checkpoint.mkdir()
    (checkpoint / "state.safetensors").write_text("x")
    Path(FINETUNE, "monitor.jsonl").write_text("{}\n")  # differs from run to run
    Path("output/reports/training-synth.svg").write_text("<svg/>")
    Path("output/reports/index.html").write_text("<!doctype html><script>x()</script>")  # the overview
    assert validate() == 0
    assert submit() == 0
    with zipfile.ZipFile("submit.zip") as archive:
        names = archive.namelist()
        infos = archive.infolist()
        for name in names:
            assert archive.read(name) == Path(name).read_bytes()
    assert names == sorted(names)
    assert {name.split("/")[0] for name in names} == {"solution", "output"}
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {0o100644}
    assert set(Entry(validated, "synth", ruleset.load("embedded")).required()) < set(names)
    assert (
        "output/reports/validation.json" in names
        and f"{FINETUNE}/merged/model-00001-of-00001.safetensors" in names
    )
    assert not [name for name in names if "hidden" in name or "pycache" in name or "checkpoint" in name]
    assert "output/reports/losses.svg" in names and not [
        name for name in names if "monitor" in name or "training-" in name or "index" in name
    ]


def test_refuses_an_invalid_entry(validated, capsys):
    Path("solution/requirements.txt").write_text("torch\n")
    assert submit() == 1
    assert not Path("submit.zip").exists()
    assert "nothing was packed" in capsys.readouterr().err


def test_refuses_an_old_validation(validated, capsys):
    Path("output/reports/validation.json").write_text("{}")
    assert submit() == 1
    assert not Path("submit.zip").exists()
    assert "validate` again" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(validated, monkeypatch, capsys):
    def full(source, target, length):
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device", "submit.zip")

    monkeypatch.setattr(pack, "shutil", SimpleNamespace(copyfileobj=full))
    before = set(Path().iterdir())
    assert submit() == 1
    assert set(Path().iterdir()) == before
    assert "the disk is full" in capsys.readouterr().err


def test_a_failure_keeps_the_old_archive(validated, monkeypatch):
    Path("submit.zip").write_text("the archive before")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack, "shutil", SimpleNamespace(copyfileobj=fail))
    assert submit() == 1
    assert Path("submit.zip").read_text() == "the archive before"


def test_recheck_finds_what_differs(validated):
    """A file that changes while it is packed, an extra member and damaged bytes are all reported."""
    assert submit() == 0
    entry = Entry(validated, "synth", ruleset.load("embedded"))
    members = entry.members()
    pack.recheck(entry, Path("submit.zip"), members)

    with zipfile.ZipFile("submit.zip", "a") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(UserError, match="its members are not"):
        pack.recheck(entry, Path("submit.zip"), members)

    assert submit() == 0
    Path("solution/readme").write_text("other")
    with pytest.raises(UserError, match="solution/readme is not the file"):
        pack.recheck(Entry(validated, "synth", ruleset.load("embedded")), Path("submit.zip"), members)

    content = bytearray(Path("submit.zip").read_bytes())
    with zipfile.ZipFile("submit.zip") as archive:
        member = archive.getinfo("output/train.sh")
    content[member.header_offset + 30 + len(member.filename) + 20] ^= 1
    Path("damaged.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"output/train\.sh"):
        pack.recheck(entry, Path("damaged.zip"), members)
