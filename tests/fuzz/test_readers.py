"""Readers of foreign bytes accept what is honest and refuse everything else in one sentence: the cases that
searches found (corpus), and a few mutations of honest bytes. The search itself is tests/fuzz/run.py."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import readers
from mutations import some_bytes
from run import LONGEST

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """The tensors of the honest entry are no model that could be merged."""
    monkeypatch.setattr("toolkit.bundle.checks.remerged.merged_again", lambda entry, folder: [])


@pytest.mark.parametrize("name", readers.READERS)
def test_honest_bytes_are_accepted_and_mutations_are_read_or_refused(name, tmp_path):
    draw = random.Random(name)
    for seed in readers.READERS[name].seeds():
        assert readers.accepts(name, seed, tmp_path)
        for _ in range(3 if name in readers.WHOLE else 40):
            readers.accepts(name, some_bytes(seed, draw), tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_what_a_search_found_stays_mended(case, tmp_path):
    readers.accepts(case.partition("/")[0], (CORPUS / case).read_bytes(), tmp_path)


@pytest.mark.parametrize("name", readers.READERS)
def test_a_search_begins_with_honest_bytes_that_are_whole(name):
    assert all(len(seed) <= LONGEST for seed in readers.READERS[name].seeds())


def test_the_search_starts_outside_pytest_and_names_the_readers():
    command = [sys.executable, Path(__file__).with_name("run.py"), "strange"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"unknown reader strange: choose from {', '.join(readers.READERS)}" in done.stderr
