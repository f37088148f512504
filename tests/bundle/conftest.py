"""A valid entry, built once and copied for each test."""

import shutil
from functools import cache
from pathlib import Path

import entry_tree
import pytest

from toolkit.benchmarks.mmbench import MMBench
from toolkit.bundle.checks import derived, secrets
from toolkit.report.figures import STAGES, draw_losses_of_all, losses

DRAWN: dict[tuple, bytes] = {}
UPLOADS: dict[tuple, bytes] = {}
HITS: dict[tuple, list[tuple[int, str]]] = {}
MATERIALS = cache(derived._materials)  # of locks that no test changes


@pytest.fixture(scope="session")
def valid_tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("entry") / "tree"
    entry_tree.EntryTree().build(root)
    return root


@pytest.fixture(scope="session")
def packed_tree(valid_tree, tmp_path_factory):
    """A valid tree and its archive."""
    root = tmp_path_factory.mktemp("packed") / "tree"
    shutil.copytree(valid_tree, root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        entry_tree.pack()
    return root


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """The tensors of these entries are no model that could be merged."""
    monkeypatch.setattr("toolkit.bundle.checks.remerged.merged_again", lambda entry, folder: [])
    monkeypatch.setattr("toolkit.bundle.verify.replay", lambda report, entry, folder, deep: [])


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    """A figure of the same losses and the bill of materials are made once: hundreds of these entries have the
    same."""

    def draw(experiments, path):
        key = tuple((run.name, *(tuple(losses(run, stage)) for stage in STAGES)) for run in experiments)
        if key in DRAWN:
            path.write_bytes(DRAWN[key])
        else:
            draw_losses_of_all(experiments, path)
            DRAWN[key] = path.read_bytes()

    monkeypatch.setattr(derived, "_materials", MATERIALS)
    monkeypatch.setattr(derived, "draw_losses_of_all", draw)
    monkeypatch.setattr(entry_tree, "draw_losses_of_all", draw)


@pytest.fixture(autouse=True)
def compared_once(monkeypatch):
    """Upload tables of the same answers and secrets in the same text are looked for once: an entry that is
    checked has one broken file among dozens."""
    write, search = MMBench.write_further, secrets.search
    shared = set(map(id, secrets.KEYS + secrets.TRACES))  # the others name the test's own folder

    def write_once(self, files, outputs):
        key = self.name, *(Path(path).read_bytes() for path in (self.table(files), outputs["answers"]))
        if key in UPLOADS:
            outputs["upload"].write_bytes(UPLOADS[key])
        else:
            write(self, files, outputs)
            UPLOADS[key] = outputs["upload"].read_bytes()

    def search_once(patterns, number, block, quoted):
        known = [pattern for pattern in patterns if id(pattern) in shared]
        key = tuple(map(id, known)), number, block, quoted
        if key not in HITS:
            HITS[key] = list(search(known, number, block, quoted))
        yield from HITS[key]
        yield from search([pattern for pattern in patterns if id(pattern) not in shared], *key[1:])

    monkeypatch.setattr(MMBench, "write_further", write_once)
    monkeypatch.setattr(secrets, "search", search_once)


@pytest.fixture
def tree(valid_tree, tmp_path, monkeypatch):
    """A copy to break; it is the working directory."""
    return _copy(valid_tree, tmp_path, monkeypatch)


@pytest.fixture
def packed(packed_tree, tmp_path, monkeypatch):
    """The same with its archive, submit.zip."""
    return _copy(packed_tree, tmp_path, monkeypatch)


def _copy(source, tmp_path, monkeypatch):
    root = tmp_path / "tree"
    shutil.copytree(source, root)
    monkeypatch.chdir(root)
    return root
