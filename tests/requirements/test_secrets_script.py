"""`.ci/secrets` finds what a maintained set of rules knows, in files and in archives, and never prints it."""

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".cache/security/bin/python"
KEY = "AKIA" + "QYLPMN5HHHFPZAM2"


@pytest.mark.parametrize(("text", "hits"), [(f"key: {KEY}\n", 1), ("key: of the city\n", 0)])
def test_an_archive_is_searched(tmp_path, text, hits):
    if not PYTHON.exists():
        pytest.skip("make secrets makes the environment that this needs")
    with zipfile.ZipFile(tmp_path / "submit.zip", "w") as archive:
        archive.writestr("solution/readme", f"first line\n{text}")
    done = subprocess.run(
        [PYTHON, ROOT / ".ci/secrets", tmp_path / "submit.zip"], capture_output=True, text=True
    )
    assert done.returncode == hits and f"detect-secrets: {hits} findings" in done.stdout
    assert ("solution/readme:2: AWS Access Key" in done.stdout) == bool(hits) and KEY not in done.stdout
