"""A misbehaving server, and an empty project folder in which assets.lock is written."""

import pytest
from servers import running

from toolkit.assets import download


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The working directory of the test, without the caller's tokens and mirrors."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TOOLKIT_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return folder
