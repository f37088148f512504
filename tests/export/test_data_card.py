"""A dataset card says what the record says, and the Hub's own libraries read it offline."""

import shutil
from pathlib import Path

import pytest
from datasets import load_dataset
from entry_tree import ROWS, EntryTree
from huggingface_hub import DatasetCard

from toolkit.__main__ import main
from toolkit.files import read_json, read_jsonl, write_json, write_jsonl

FOLDER = Path("output/processed_data/synth")
FUNNEL = [{"operator": "read", "in": 40, "out": 40}, {"operator": "words_num_filter", "in": 40, "out": 31}]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A finished project whose recipe made two images."""
    root = tmp_path_factory.mktemp("built") / "project"
    EntryTree().build(root)
    return root


@pytest.fixture
def project(built, tmp_path, monkeypatch):
    """A copy of its data as the working directory."""
    shutil.copytree(built / FOLDER, tmp_path / FOLDER)
    monkeypatch.chdir(tmp_path)
    change(lambda record: record["results"].update(funnel=FUNNEL))
    return tmp_path


def change(edit) -> None:
    record = read_json(FOLDER / "run.json")
    edit(record)
    write_json(FOLDER / "run.json", record)


def card(*flags: str) -> DatasetCard:
    assert main(["data", "card", str(FOLDER), *flags]) == 0
    return DatasetCard.load(FOLDER / "README.md")


def test_the_card_is_what_the_record_says(project, parts):
    written = card("--tokenizer", str(parts.llm))
    rows = list(read_jsonl(FOLDER / "processed_data.jsonl"))
    record = read_json(FOLDER / "run.json")
    assert written.data.license == "apache-2.0" and written.data.size_categories == "n<1K"
    assert (
        f"{len(rows)} image-caption pairs" in written.text
        and f"from {ROWS} rows of world-seed" in written.text
    )
    assert "| words_num_filter | 40 | 31 |" in written.text
    assert record["inputs"]["recipe"]["sha256"] in written.text
    assert record["outputs"]["processed_data"]["sha256"] in written.text
    assert "| world-captioner | captioner: BLIP-2 captioner | Apache-2.0 |" in written.text
    assert f"- rows: {len(rows)}\n" in written.text
    (tokens,) = (line for line in written.text.splitlines() if line.startswith("- tokens in captions"))
    (words,) = (line for line in written.text.splitlines() if line.startswith("- words in captions"))
    assert int(tokens.rpartition(" ")[2]) >= int(words.rpartition(" ")[2]) >= len(rows)


def test_the_folder_loads_as_a_data_set_with_its_split(project, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    card()
    loaded = load_dataset(str(FOLDER), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"]["text"] == [row["text"] for row in read_jsonl(FOLDER / "processed_data.jsonl")]


@pytest.mark.parametrize(
    ("asset", "licence", "said"),
    [
        ("mgm_pretrain", "other", "see the data set's page"),
        ("holiday-pictures", "other", "the registry of assets does not name it"),
    ],
)
def test_terms_that_have_no_name_on_the_hub_are_stated(project, asset, licence, said):
    change(lambda record: record["settings"]["images"].update(path=f"input/{asset}"))
    written = card()
    assert written.data.license == licence and written.data.license_name == "see-the-data-statement"
    assert said in next(line for line in written.text.splitlines() if line.startswith(f"| {asset} |"))


def test_images_that_the_recipe_made_are_counted(project):
    folder = FOLDER / "synthetic_images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(b"x" * 700)
    assert "| synthetic_images/ | 1,400 | 2 images that the recipe made |" in card().text


@pytest.mark.parametrize("name", ["processed_data.jsonl", "removed.jsonl"])
def test_rows_that_are_not_the_records_are_refused(project, name, capsys):
    rows = list(read_jsonl(FOLDER / name))
    write_jsonl(FOLDER / name, rows[1:])
    assert main(["data", "card", str(FOLDER)]) == 1
    assert f"{name} is not the file that" in capsys.readouterr().err
    assert not (FOLDER / "README.md").exists()


def test_a_card_that_somebody_edited_stays(project, capsys):
    card()
    (FOLDER / "README.md").write_text("mine")
    assert main(["data", "card", str(FOLDER)]) == 1
    assert "exists: delete it" in capsys.readouterr().err
    assert (FOLDER / "README.md").read_text() == "mine"


def test_a_folder_without_a_record_is_named(tmp_path, capsys):
    assert main(["data", "card", str(tmp_path)]) == 1
    assert "run.json does not exist" in capsys.readouterr().err
