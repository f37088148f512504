"""What a record states about code, environment and machine: the same in two clones, another after an edit
that counts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import code
from toolkit.contest import records
from toolkit.contest.stages import MODULES
from toolkit.files import read_json

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Another folder with the toolkit's files, other times, byte code and a stray note."""
    shutil.copytree(
        ROOT / "toolkit",
        tmp_path / "toolkit",
        ignore=shutil.ignore_patterns("__pycache__"),
        copy_function=shutil.copyfile,
    )
    (tmp_path / "toolkit/mgm/__pycache__").mkdir()
    (tmp_path / "toolkit/mgm/__pycache__/model.pyc").write_text("x")
    (tmp_path / "toolkit/notes.txt").write_text("x")
    here = code.digest(*MODULES)
    monkeypatch.setattr(code, "HERE", tmp_path / "toolkit")
    return tmp_path, here


def test_two_clones_state_the_same_code(clone):
    assert code.digest(*MODULES) == clone[1]


@pytest.mark.parametrize(
    ("file", "counts"),
    [("mgm/model.py", True), ("scales/tiny.yaml", True), ("files.py", True), ("bundle/pack.py", False)],
)
def test_an_edit_that_can_change_a_result_changes_the_code(clone, file, counts):
    path = clone[0] / "toolkit" / file
    path.write_text(path.read_text() + "\n")
    assert (code.digest(*MODULES) != clone[1]) == counts


def test_the_lock_counts_only_where_it_is_installed(tmp_path):
    for path in (ROOT / "requirements").glob("*.lock"):
        shutil.copy(path, tmp_path)
    stated = records.lock.__wrapped__(tmp_path)
    assert stated == records.lock()
    common = tmp_path / "common.lock"
    common.write_text(common.read_text().replace("\npydantic==", "\npydantic==0."))
    assert records.lock.__wrapped__(tmp_path) is None
    assert records.lock.__wrapped__(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("torch", "name"),
    [
        ("2.13.0+cpu", "torch-cpu"),
        ("2.13.0", "torch-cuda"),
        ("2.10.0", "torch-cuda12"),
        ("2.10.0+cu128", "torch-cuda12"),
        ("2.10.1", "torch-cuda"),
    ],
)
def test_the_lock_of_torch_is_the_one_that_pins_what_is_installed(monkeypatch, torch, name):
    monkeypatch.setattr(records, "versions", lambda *packages: {"torch": torch})
    assert [path.stem for path in records.locks(ROOT / "requirements")] == ["common", name]


def test_no_driver_on_a_cpu_and_the_image_of_a_container(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_IMAGE", f"sha256:{'0' * 64}")
    records.write_record("run.json", "test", inputs={}, outputs={}, settings={}, results={})
    written = read_json("run.json")
    assert (written["driver"], written["image"]) == (None, f"sha256:{'0' * 64}")
    assert written["code"] == code.digest(*MODULES) and written["lock"] == records.lock()


def test_a_driver_on_a_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    assert (
        records.driver(torch.cuda.get_device_name())
        == subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    )


def test_a_record_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import toolkit.contest.records, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False"
