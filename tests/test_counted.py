"""Numbers in sentences."""

import json
from pathlib import Path

import pytest
from PIL import Image

from toolkit.__main__ import main
from toolkit.counted import counted


@pytest.mark.parametrize(("number", "text"), [(1, "1 row"), (2, "2 rows"), (None, "None rows")])
def test_nouns(number, text):
    assert counted(number, "row") == text


def test_verbs_and_thousands():
    assert [counted(number, "row has", "rows have") for number in (1, 2)] == ["1 row has", "2 rows have"]
    assert counted(1234, "row", form=",") == "1,234 rows"


def test_one_of_each_has_no_plural(tmp_path: Path, capsys):
    """A seed of one row, and a check that finds one problem."""
    Image.new("RGB", (60, 60), "navy").save(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": "a dark square"}, {"image": "b.png", "caption": "not there"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    seed = tmp_path / "seed"
    assert main(["data", "import", str(tmp_path / "rows.json"), str(seed)]) == 0
    assert f"1 row of 1 image in {seed}, 1 row rejected, see" in capsys.readouterr().out
    line = json.loads((seed / "samples.jsonl").read_text())
    (seed / "samples.jsonl").write_text(json.dumps(line | {"images": ["gone.png"]}) + "\n")
    files = ["--samples", str(seed / "samples.jsonl"), "--images", str(seed)]
    files += ["--original", str(seed / "original.json"), "--output", str(tmp_path / "check.json")]
    assert main(["data", "check", *files]) == 1
    printed = capsys.readouterr().err
    assert "\n1 problem:\n" in printed and "samples.jsonl has 1 problem, all listed in" in printed
