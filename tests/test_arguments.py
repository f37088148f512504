"""Values of command lines that mean nothing are wrong usage, never a traceback."""

import argparse
import importlib
import os

import pytest

from toolkit import arguments
from toolkit.__main__ import main

INTEGERS = ["-1", "1.5", "1e3", "x", "", "\N{SUPERSCRIPT TWO}"]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (arguments.at_least_one, {"1": 1, "12": 12}, ["0", *INTEGERS]),
        (arguments.processes, {"1": 1, "2": 2}, ["0", *INTEGERS]),
        (arguments.from_zero, {"0": 0, "7": 7}, INTEGERS),
        (arguments.seed, {"0": 0, str(2**63 - 1): 2**63 - 1}, [str(2**63), *INTEGERS]),
        (arguments.above_zero, {"0.5": 0.5, "24": 24.0}, ["0", "-1", "nan", "inf", "x", ""]),
    ],
)
def test_numbers(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


@pytest.mark.parametrize(
    "command",
    [
        "bundle verify {file} --json {file}",
        "bundle audit {other} {file} --html {file}",
        "bundle audit {file} --json {other} --html {other}",
        "evaluate contamination --samples {file} --images . --output {file}",
        "evaluate contamination --samples {file} --images . --output {other} --look-alikes {other}",
        "evaluate compare --results a b --seed 1 --resamples 100 --output {other} --markdown ./{other}",
        "data convert --to llava --original {other} {file} {other}",
        "report overview --config {file} --output {file}",
    ],
)
def test_what_is_written_is_no_other_file_of_the_command(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "other").write_text("kept")
    words = command.format(file="file", other="other").split()
    assert main(words) == 1
    assert "is to be written and is another file of this command" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == (tmp_path / "other").read_text() == "kept"


def test_a_folder_to_write_to_is_no_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(argparse.ArgumentTypeError, match="is a file, a folder is expected"):
        arguments.output_folder(str(tmp_path / "file"))
    assert arguments.output_folder(str(tmp_path / "new")) == tmp_path / "new"


def test_a_bootstrap_has_tails(capsys):
    assert arguments.resamples("100") == 100
    for text in ("99", "1", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            arguments.resamples(text)


@pytest.mark.parametrize("noun", ["data", "evaluate"])
def test_more_processes_than_a_machine_can_use_are_not_started(noun):
    subparsers = argparse.ArgumentParser().add_subparsers()
    importlib.import_module(f"toolkit.{noun}.cli").commands(subparsers)
    flags = [
        action
        for command in subparsers.choices.values()
        for action in command._actions
        if action.dest in ("processes", "threads")
    ]
    assert {flag.type("100000") for flag in flags} == {4 * len(os.sched_getaffinity(0))}


@pytest.mark.parametrize(
    "command",
    [
        ["data", "import", "x", "y", "--processes", "0"],
        ["plan", "--gpus", "0"],
        ["plan", "--nodes", "0"],
        ["bundle", "rebuild", "x.zip", "--output", "y", "--hours", "nan"],
        ["bundle", "rebuild", "x.zip", "--output", "y", "--memory-gib", "inf"],
        ["search", "--cores", "-1"],
        ["ask", "--seed", str(2**63)],
        ["bench", "train", "--budget-gib", "nan"],
    ],
)
def test_commands_refuse_them(command, capsys):
    with pytest.raises(SystemExit) as raised:
        main(command)
    assert raised.value.code == 2 and f"argument {command[-2]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--budget-gib", "nan"),
        ("--budget-gib", "inf"),
        ("--seed", "9" * 20),
        ("--gpus", "-1"),
        ("--nodes", "0"),
    ],
)
def test_a_training_refuses_them(flag, value, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["train", "pretrain", flag, value])
    assert raised.value.code == 2 and f"argument {flag}: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "null", "[]"])
def test_a_configuration_that_is_none(text, tmp_path, capsys):
    assert main(["bundle", "sources", "--config", text, "--output", str(tmp_path)]) == 1
    assert "error: --config cannot be used: " in capsys.readouterr().err
