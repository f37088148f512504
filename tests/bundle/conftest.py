"""A valid entry, built once and copied for each test."""

import shutil

import entry_tree
import pytest


@pytest.fixture(scope="session")
def valid_tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("entry") / "tree"
    entry_tree.EntryTree().build(root)
    return root


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """The tensors of these entries are no model that could be merged."""
    monkeypatch.setattr("toolkit.bundle.checks.remerged.merged_again", lambda entry, folder: [])
    monkeypatch.setattr("toolkit.bundle.verify.replay", lambda report, entry, folder, deep: [])


@pytest.fixture
def tree(valid_tree, tmp_path, monkeypatch):
    """A copy to break; it is the working directory."""
    root = tmp_path / "tree"
    shutil.copytree(valid_tree, root)
    monkeypatch.chdir(root)
    return root
