"""The small models, built once a session."""

from pathlib import Path

import pytest
from tiny_data import captioner_model, clip_model


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioner_model(tmp_path_factory.mktemp("captioner"))
