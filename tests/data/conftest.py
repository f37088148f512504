"""The small models, built once a session, and rows for the operators that run them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import KEY, Server, serving
from tiny_data import captioner_model, chat_model, clip_model, matcher_model, seed_set

from toolkit.data.engine import juicer


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioner_model(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return matcher_model(tmp_path_factory.mktemp("matcher"))


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """Data-Juicer with the project's operators."""
    with juicer.offline():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """21 rows with absolute image paths: no multiple of any batch."""
    folder = tmp_path_factory.mktemp("rows")
    return [{**row, "images": [str(folder / row["images"][0])]} for row in seed_set(folder, 21)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A chat endpoint that the environment names; tries follow each other at once."""
    monkeypatch.setattr("toolkit.data.endpoint.BACKOFF", 0.01)
    with serving() as made:
        monkeypatch.setenv("OPENAI_BASE_URL", made.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield made
