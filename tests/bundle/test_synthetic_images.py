"""Images that a recipe made: packed where the rules say so, tied to the rows by their names, compared with
the benchmarks."""

import json
import shutil
import zipfile
from pathlib import Path

import entry_tree
import pytest
from entry_tree import DATA, ENTRY, EntryTree, compared
from photos import encoded, photo
from PIL import Image, ImageOps
from test_verify import check, forge

from toolkit.__main__ import main
from toolkit.bundle.checks import rows
from toolkit.bundle.entry import Entry
from toolkit.bundle.pack import VALIDATION
from toolkit.contest import ruleset
from toolkit.files import sha256, write_json

FOLDER = Path(DATA, "synthetic_images")


@pytest.fixture(scope="module")
def made_tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "tree"
    EntryTree(synthetic=3).build(root)
    return root


@pytest.fixture
def tree(made_tree, tmp_path, monkeypatch):
    shutil.copytree(made_tree, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")


def validate() -> tuple[int, dict]:
    status = main(["bundle", "validate", *ENTRY, "--output", VALIDATION])
    return status, json.loads(Path(VALIDATION).read_text())


def images() -> list[Path]:
    return sorted(FOLDER.iterdir())


def test_an_honest_entry(tree):
    """Packed, described, verified from the archive, compared with the benchmarks."""
    assert validate()[0] == 0
    assert main(["bundle", "submit", *ENTRY, "--output", "submit.zip"]) == 0
    with zipfile.ZipFile("submit.zip") as archive:
        assert {path.as_posix() for path in images()} < set(archive.namelist())
        crate = {
            entity["@id"]: entity
            for entity in json.loads(archive.read("output/ro-crate-metadata.json"))["@graph"]
        }
    described = crate[images()[0].relative_to("output").as_posix()]
    assert described["encodingFormat"] == "image/jpeg" and described["sha256"] == sha256(images()[0])
    shutil.rmtree("output")
    status, report = check("--inputs", "input")
    assert status == 0 and report["findings"] == [] and report["unproved"] == {}


def test_all_of_them_are_compared(tree):
    stated = json.loads(Path(DATA, "contamination.json").read_text())
    assert stated["compared"]["images"] == 36 + 3
    before = stated["images"]
    images()[0].write_bytes(b"other")
    assert compared()["images"] != before


def test_a_mirrored_evaluation_image_is_to_be_looked_at(tree, monkeypatch):
    """A warning that names both; the entry stays valid."""
    images()[0].write_bytes(encoded(ImageOps.mirror(photo(3))))
    question = {"textvqa q.jpg": encoded(photo(3))}
    monkeypatch.setattr("toolkit.evaluate.look_alikes.pictures", lambda evaluation: question)
    monkeypatch.setattr("toolkit.bundle.checks.rows.contamination", lambda *_, **__: compared())
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    write_json(Path(DATA, "contamination.json"), compared())
    (finding,) = rows.compared_again(entry)
    assert (finding.id, finding.severity, finding.file) == ("D4", "warning", images()[0].as_posix())
    assert "textvqa q.jpg" in finding.message


def exchanged() -> None:
    images()[0].write_bytes(images()[1].read_bytes())


def lost() -> None:
    images()[0].unlink()


def left_over() -> None:
    row = entry_tree.made_image(99)
    assert Path(DATA, row).is_file()


BROKEN = {
    exchanged: "its name is not its SHA-256",
    lost: "it is not there",
    left_over: "no row uses this image",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda one: one.__name__)
def test_broken(tree, break_it):
    assert validate()[0] == 0
    break_it()
    forge()
    for status, document in (check("--inputs", "input"), validate()):
        hits = [
            finding
            for finding in document["findings"]
            if finding["id"] == "D1" and BROKEN[break_it] in finding["message"]
        ]
        assert status == 1 and hits and hits[0]["file"].startswith(FOLDER.as_posix())


def test_an_image_of_the_benchmark(tree):
    """One that the recipe "made" is a picture of TextVQA: found in the tree, and in an archive that says it
    is none."""
    assert validate()[0] == 0
    picture = Path("input/world-evaluation/textvqa/train_images/q3.jpg")
    picture.parent.mkdir()
    picture.write_bytes(images()[0].read_bytes())
    entry_tree.manifest("world-evaluation")
    forge()
    status, report = check("--inputs", "input")
    assert status == 1 and "D4" in {finding["id"] for finding in report["findings"]}
    write_json(Path(DATA, "contamination.json"), compared())
    status, document = validate()
    found = [finding["message"] for finding in document["findings"] if finding["id"] == "D4"]
    assert status == 1 and f"image synthetic_images/{images()[0].name}" in found[0]


def drawn(size: tuple[int, int], kind: str) -> bytes:
    return encoded(Image.new("1", size), kind)


HOSTILE = [
    (drawn((9000, 6000), "PNG"), "Z5", "9000 x 6000 pixels"),
    (b"text", "Z8", "is not an image"),
    (drawn((8, 8), "TIFF"), "Z8", "is not an image"),
]


@pytest.mark.parametrize(("content", "identifier", "words"), HOSTILE)
def test_hostile_images(tree, content, identifier, words):
    """Are refused by their headers, before anything decodes them; the packer refuses them too."""
    assert validate()[0] == 0
    images()[0].write_bytes(content)
    forge()
    status, report = check("--inputs", "input")
    assert status == 1
    assert [(finding["id"], words in finding["message"]) for finding in report["findings"]] == [
        (identifier, True)
    ]


def test_the_packer_refuses_what_verify_would(tree, capsys):
    with zipfile.ZipFile("solution/notes.zip", "w") as archive:
        archive.writestr("a", "b")
    EntryTree(synthetic=3).documents()
    assert validate()[0] == 0
    assert main(["bundle", "submit", *ENTRY, "--output", "submit.zip"]) == 1
    assert (
        not Path("submit.zip").exists()
        and "solution/notes.zip: is an archive in the archive" in capsys.readouterr().err
    )


def test_the_online_layout_has_no_data(tmp_path, monkeypatch):
    """The kit's README lists rows and images for the final only: they are known by hash, and verify says what
    it could not see."""
    EntryTree(scale="baseline_10k", synthetic=3).build(tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    members = {
        name: Entry(Path(), "synth", ruleset.load(name)).members() for name in ("online_2024", "offline_2024")
    }
    assert [sum("synthetic_images" in one for one in names) for names in members.values()] == [0, 3]
    main(["bundle", "validate", *ENTRY[:-1], "online_2024", "--output", VALIDATION])
    with zipfile.ZipFile("submit.zip", "w") as archive:
        for name in sorted({*members["online_2024"], VALIDATION}):
            archive.write(name)
    _, report = check("--inputs", "input")
    assert report["rules"]["name"] == "online_2024"
    # 20 questions are too few at this size, and the assets are the world's
    assert {finding["id"] for finding in report["findings"]} == {"E2", "P3", "V1"}
    assert {"D1", "D2", "D3", "D4"} <= set(report["unproved"])
