"""A seed set of images with captions, whatever the format: the same rows, checked, whole or absent."""

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from toolkit.__main__ import main
from toolkit.data.check import check
from toolkit.data.importer import Counts, import_seed
from toolkit.errors import UserError
from toolkit.files import read_json, read_jsonl

CAPTIONS = {"a/0.jpg": "a red mug", "a/1.jpg": "two cats", "b/2.png": "a street at night"}


@pytest.fixture
def photos(tmp_path):
    """Three images in two folders."""
    folder = tmp_path / "photos"
    for number, name in enumerate(CAPTIONS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number * 80, 10, 10)).save(folder / name)
    return folder


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def llava(name, caption, question="<image>\nWhat is this?"):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": caption}]
    return {"id": f"photo-{name}", "image": name, "conversations": turns}


def as_jsonl(photos):
    return jsonl(
        photos / "captions.jsonl", [{"image": name, "caption": text} for name, text in CAPTIONS.items()]
    )


def as_jsonl_called_json(photos):
    return as_jsonl(photos).rename(photos / "captions.json")


def as_llava(photos):
    (photos / "captions.json").write_text(json.dumps([llava(*item) for item in CAPTIONS.items()]))
    return photos / "captions.json"


def as_data_juicer(photos):
    rows = [
        {"id": name, "text": f"<__dj__image>\n{text} <|__dj__eoc|>", "images": [name]}
        for name, text in CAPTIONS.items()
    ]
    return jsonl(photos / "rows.jsonl", rows)


def as_coco(photos):
    value = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)],
        "annotations": [
            {"id": 70 + number, "image_id": number, "caption": f"{text}\n"}
            for number, text in enumerate(CAPTIONS.values())
        ],
    }
    (photos / "captions_val.json").write_text(json.dumps(value))
    return photos / "captions_val.json"


def as_imagefolder(photos):
    for folder in "ab":
        rows = [
            {"file_name": name[2:], "text": text}
            for name, text in CAPTIONS.items()
            if name.startswith(folder)
        ]
        jsonl(photos / folder / "metadata.jsonl", rows)
    return photos


def as_csv(photos):
    with (photos / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as handle:
        table = csv.DictWriter(handle, ["file_name", "caption"])
        table.writeheader()
        table.writerows({"file_name": name, "caption": text} for name, text in CAPTIONS.items())
    return photos


def add(archive, member, content):
    info = tarfile.TarInfo(member)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def as_webdataset(photos, caption=".txt"):
    """Two archives, as img2dataset writes them."""
    folder = photos.parent / "shards"
    folder.mkdir()
    for shard in "ab":
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for name, text in CAPTIONS.items():
                if name.startswith(shard):
                    stem = name[2:].partition(".")[0]
                    body = text if caption == ".txt" else json.dumps({"caption": text, "status": "success"})
                    add(archive, name[2:], (photos / name).read_bytes())
                    add(archive, f"{stem}{caption}", body.encode())
    return folder


def as_webdataset_json(photos):
    return as_webdataset(photos, ".json")


FORMATS = [
    as_jsonl,
    as_jsonl_called_json,
    as_llava,
    as_data_juicer,
    as_coco,
    as_imagefolder,
    as_csv,
    as_webdataset,
    as_webdataset_json,
]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_every_format_gives_the_same_seed(photos, tmp_path, form):
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    assert import_seed(form(photos), tmp_path / "seed") == Counts(3, 3, 0)
    rows = list(read_jsonl(tmp_path / "seed/samples.jsonl"))
    assert [row["text"] for row in rows] == [
        f"<__dj__image>\n{text} <|__dj__eoc|>" for text in CAPTIONS.values()
    ]
    for row, name in zip(rows, CAPTIONS, strict=True):
        assert (tmp_path / "seed" / row["images"][0]).read_bytes() == (photos / name).read_bytes()
    original = read_json(tmp_path / "seed/original.json")
    question = "<image>\nWhat is this?" if form is as_llava else "<image>\nWhat is in the photo?"
    assert {entry["conversations"][0]["value"] for entry in original} == {question}
    report = check(
        tmp_path / "seed/samples.jsonl",
        tmp_path / "seed",
        tmp_path / "seed/original.json",
        tmp_path / "check.json",
    )
    assert (report.rows, report.images) == (3, 3)
    assert report.problems == report.set_aside == report.outside == []
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_ids_and_paths_of_the_source_stay(photos, tmp_path):
    """So that a part of the contest's own pool is the contest's seed."""
    (photos / "images/00609").mkdir(parents=True)
    (photos / "a/0.jpg").rename(photos / "images/00609/006092514.jpg")
    rows = [{**llava("images/00609/006092514.jpg", "a mug"), "id": "006092514"}]
    (photos / "pool.json").write_text(json.dumps(rows))
    import_seed(photos / "pool.json", tmp_path / "seed")
    (row,) = read_jsonl(tmp_path / "seed/samples.jsonl")
    assert (row["id"], row["images"]) == ("006092514", ["images/00609/006092514.jpg"])


def test_several_captions_of_an_image_and_equal_ids_are_several_rows(photos, tmp_path):
    rows = [{"id": 7, "image": "a/0.jpg", "captions": ["a mug", "a red mug"]}, {"id": 7, "image": "a/1.jpg"}]
    rows[1]["text"] = "cats"
    assert import_seed(jsonl(photos / "x.jsonl", rows), tmp_path / "seed") == Counts(3, 2, 0, renamed=2)
    ids = [row["id"] for row in read_jsonl(tmp_path / "seed/samples.jsonl")]
    assert ids == ["7", "import-000000002", "import-000000003"]
    assert [entry["id"] for entry in read_json(tmp_path / "seed/original.json")] == ids


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": "a/9.jpg", "caption": "x"}, "missing image (a/9.jpg)"),
        ({"image": "broken.jpg", "caption": "x"}, "unreadable image"),
        ({"image": "../secret.jpg", "caption": "x"}, "leaves the folder of images"),
        ({"image": "/etc/passwd", "caption": "x"}, "absolute image path"),
        ({"image": "a/0.jpg", "caption": "  "}, "empty caption"),
        ({"image": "a/0.jpg", "caption": 5}, "caption or question is no text"),
        ({"image": "a/0.jpg", "caption": "an <image> of"}, "<image> in the text"),
        ({"image": "a/0.jpg", "caption": "x <eos>"}, "a control token of the model"),
        ({"caption": "no image"}, "no image"),
        ({"images": ["a/0.jpg", "a/1.jpg"], "caption": "two"}, "no image"),
        (["a/0.jpg"], "no image"),
        (llava("a/0.jpg", "x", "What?"), "no <image> in the question"),
    ],
)
def test_what_training_would_not_take_is_rejected(photos, tmp_path, row, problem):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    rows = [{"image": "a/1.jpg", "caption": "good"}, row]
    assert import_seed(jsonl(photos / "x.jsonl", rows), tmp_path / "seed") == Counts(1, 1, 1)
    (rejected,) = read_jsonl(tmp_path / "seed/rejected.jsonl")
    assert rejected["where"] == "x.jsonl, line 2" and problem in rejected["problem"]
    with pytest.raises(UserError, match=r"has no row that can be trained on, y\.jsonl, line 1: "):
        import_seed(jsonl(photos / "y.jsonl", [row]), tmp_path / "none")
    assert not list(tmp_path.glob("*none*")) and not list(tmp_path.glob(".*"))


def test_two_images_of_one_name(photos, tmp_path):
    (photos / "images/a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(photos / "images/a/0.jpg")
    rows = [{"image": name, "caption": "x"} for name in ("a/0.jpg", "images/a/0.jpg")]
    assert import_seed(jsonl(photos / "x.jsonl", rows), tmp_path / "seed").rejected == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"image": ', "line 1 is not valid JSON"),
        ("x.json", b"{}", "neither a list of rows nor COCO's captions"),
        ("x.json", b'{"annotations": [{}], "images": []}', "annotations with id, image_id and caption"),
        (
            "x.json",
            b'{"images": [], "annotations": [{"id": 1, "image_id": [1], "caption": ""}]}',
            "annotations with id, image_id and caption",
        ),
        (
            "x.json",
            b'{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
            "several images with the id 1",
        ),
        ("x.tar", b"no archive", r"x\.tar cannot be read"),
        ("x.csv", b"file_name,caption\n\xff,x\n", "is no CSV in UTF-8"),
        (
            "x.csv",
            b"file_name;text\na.jpg;x\n",
            r"the columns 'file_name;text': one of image, images, .* commas",
        ),
        ("x.csv", b"path,description\na.jpg,x\n", "'path', 'description': one of caption, captions, text"),
        ("x.csv", b"path,text\na.jpg,x\nb.jpg,red, green\n", "line 3 has more values than columns"),
        ("x.csv", b"", "x.csv has no columns: one of image"),
        ("x.csv", b"image,text,text\na.jpg,x,y\n", "has the column 'text' more than once"),
        ("nothing.jsonl", None, "does not exist"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        import_seed(tmp_path / name, tmp_path / "seed")
    assert not (tmp_path / "seed").exists() and not list(tmp_path.glob(".*"))


def test_a_folder_of_images_that_is_not_there_is_named(photos, tmp_path):
    with pytest.raises(UserError, match=r"--images .*nowhere is not a folder"):
        import_seed(
            jsonl(photos / "x.jsonl", [{"image": "a/0.jpg", "caption": "x"}]),
            tmp_path / "seed",
            photos / "nowhere",
        )


def test_rows_are_read_from_a_pipe(photos, tmp_path):
    os.mkfifo(tmp_path / "rows")
    content = jsonl(photos / "x.jsonl", [{"image": "a/0.jpg", "caption": "x"}]).read_bytes()
    writer = threading.Thread(target=(tmp_path / "rows").write_bytes, args=[content])
    writer.start()
    assert import_seed(tmp_path / "rows", tmp_path / "seed", photos) == Counts(1, 1, 0)
    writer.join()


def test_a_member_of_an_archive_cannot_write_elsewhere(photos, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        image = (photos / "a/0.jpg").read_bytes()
        for member, content in [
            ("../evil.jpg", image),
            ("../evil.txt", b"evil"),
            ("/evil.jpg", image),
            ("/evil.txt", b"evil"),
            ("good.jpg", image),
            ("good.txt", b"good"),
            ("link.txt", b"a link out"),
            ("self.txt", b"a link to itself"),
        ]:
            add(archive, member, content)
        for name, target in (("link.jpg", "/etc/passwd"), ("self.jpg", "self.jpg")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    assert import_seed(tmp_path / "x.tar", tmp_path / "deep/seed") == Counts(1, 1, 6)
    assert [path.name for path in tmp_path.rglob("evil*")] == []
    problems = " ".join(row["problem"] for row in read_jsonl(tmp_path / "deep/seed/rejected.jsonl"))
    for problem in ("leaves the folder of images", "absolute image path /evil.jpg", "empty caption"):
        assert problem in problems


def test_a_hard_link_in_an_archive_is_the_file_that_it_leads_to(photos, tmp_path):
    """tar writes one for the second name of a file."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "0.jpg", (photos / "a/0.jpg").read_bytes())
        add(archive, "0.txt", b"a mug")
        for name in ("1.jpg", "1.txt"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, f"0{name[1:]}"
            archive.addfile(link)
    assert import_seed(tmp_path / "x.tar", tmp_path / "seed") == Counts(2, 2, 0)
    images = [row["images"][0] for row in read_jsonl(tmp_path / "seed/samples.jsonl")]
    assert {(tmp_path / "seed" / image).read_bytes() for image in images} == {
        (photos / "a/0.jpg").read_bytes()
    }


def test_what_systems_add_to_an_archive_is_no_sample(photos, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("._0.jpg", "0.jpg", "._0.txt", "0.txt", "a/.DS_Store"):
            image, text = (photos / "a/0.jpg").read_bytes(), b"\xef\xbb\xbfa mug"
            add(archive, name, image if name == "0.jpg" else text if name == "0.txt" else b"\0")
    assert import_seed(tmp_path / "x.tar", tmp_path / "seed") == Counts(1, 1, 0)
    (row,) = read_jsonl(tmp_path / "seed/samples.jsonl")
    assert row["text"] == "<__dj__image>\na mug <|__dj__eoc|>"


def test_samples_of_one_name_keep_their_own_images(photos, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for key, image in (("0", "a/0.jpg"), ("1", "a/1.jpg"), ("0", "b/2.png")):
            add(archive, f"{key}.jpg", (photos / image).read_bytes())
            add(archive, f"{key}.txt", image.encode())
        add(archive, "two.jpg", (photos / "a/0.jpg").read_bytes())
        add(archive, "two.png", (photos / "b/2.png").read_bytes())
        add(archive, "two.txt", b"whose caption?")
    assert import_seed(tmp_path / "x.tar", tmp_path / "seed") == Counts(3, 3, 1)
    for row in read_jsonl(tmp_path / "seed/samples.jsonl"):
        image = row["text"].split()[1]
        assert (tmp_path / "seed" / row["images"][0]).read_bytes() == (photos / image).read_bytes()


@pytest.mark.parametrize("suffix", [".tar", ".TAR", ".tar.gz", ".tgz"])
def test_a_whole_archive_is_told_from_one_that_is_not(photos, tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    with tarfile.open(whole, "w:gz" if "gz" in suffix else "w") as archive:
        for name in CAPTIONS:
            add(archive, name, (photos / name).read_bytes())
            add(archive, f"{name.partition('.')[0]}.txt", b"x")
    with tarfile.open(whole) as archive:
        cut = archive.getmembers()[-1].offset + 100  # in the last header, where tarfile ends without a word
    assert import_seed(whole, tmp_path / "seed") == Counts(3, 3, 0)
    content = whole.read_bytes()
    plain = gzip.decompress(content) if "gz" in suffix else content
    for number, (damaged, words) in enumerate([(plain[:cut], "is cut off"), (plain * 2, "behind its end")]):
        path = tmp_path / f"damaged{number}{suffix}"
        path.write_bytes(gzip.compress(damaged) if "gz" in suffix else damaged)
        with pytest.raises(UserError, match=words):
            import_seed(path, tmp_path / "other")


def test_a_caption_in_another_encoding_is_named(photos, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "0.jpg", (photos / "a/0.jpg").read_bytes())
        add(archive, "0.txt", "红色的杯子".encode("gbk"))
    with pytest.raises(UserError, match=r"x\.tar: 0\.txt is not UTF-8 at byte "):
        import_seed(tmp_path / "x.tar", tmp_path / "seed")


def test_lines_are_counted_as_an_editor_does(photos, tmp_path):
    source = photos / "x.jsonl"
    source.write_text('\n\n{"image": "a/0.jpg", "caption": "x"}\n\n{"image": "a/9.jpg", "caption": "x"}\n')
    import_seed(source, tmp_path / "seed")
    (rejected,) = read_jsonl(tmp_path / "seed/rejected.jsonl")
    assert rejected["where"] == "x.jsonl, line 5"


def test_new_ids_are_none_of_an_earlier_import(photos, tmp_path):
    rows = [{"image": "a/0.jpg", "caption": "x"}, {"image": "a/1.jpg", "caption": "y"}]
    rows[0]["id"] = "import-000000002"
    import_seed(jsonl(photos / "x.jsonl", rows), tmp_path / "seed")
    ids = [row["id"] for row in read_jsonl(tmp_path / "seed/samples.jsonl")]
    assert ids == ["import-000000002", "import-000000003"]


def test_a_table_with_one_long_caption_and_an_upper_case_ending(photos, tmp_path):
    caption = "w " * 70_000  # beyond the limit of Python's csv
    (photos / "x.CSV").write_text(f'file_name,text\na/0.jpg,"{caption}"\na/1.jpg,x\n')
    assert import_seed(photos / "x.CSV", tmp_path / "seed") == Counts(1, 1, 1)


def test_two_tables_of_one_folder_do_not_give_each_row_twice(photos, tmp_path):
    as_csv(photos)
    jsonl(photos / "metadata.jsonl", [{"file_name": "a/0.jpg", "text": "x"}])
    with pytest.raises(UserError, match=r"metadata\.jsonl and metadata\.csv"):
        import_seed(photos, tmp_path / "seed")


def test_a_folder_of_nothing_and_an_output_that_is_there(photos, tmp_path):
    with pytest.raises(UserError, match=r"holds no metadata\.jsonl.*--images"):
        import_seed(photos, tmp_path / "seed")
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed/mine").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        import_seed(as_jsonl(photos), tmp_path / "seed")
    assert (tmp_path / "seed/mine").read_text() == "mine"


def test_the_current_folder_is_not_replaced(photos, tmp_path, monkeypatch):
    source = as_jsonl(photos).resolve()
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    with pytest.raises(UserError, match=r"\. is the current folder: name a new one"):
        import_seed(source, Path())


def test_a_caption_of_no_image_in_coco_says_so(photos, tmp_path):
    source = as_coco(photos)
    value = json.loads(source.read_text())
    value["annotations"].append({"id": 5, "image_id": "none", "caption": "a"})
    source.write_text(json.dumps(value))
    assert import_seed(source, tmp_path / "seed").rejected == 1
    (rejected,) = read_jsonl(tmp_path / "seed/rejected.jsonl")
    assert rejected["problem"] == "there is no image with the id 'none'"


def test_killed_it_leaves_nothing_that_looks_whole(photos, tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom toolkit.data import importer\n"
        "importer.write_text = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "importer.import_seed(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", script, str(as_jsonl(photos)), str(tmp_path / "seed")]
    root = Path(__file__).parents[2]
    killed = subprocess.run(arguments, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "seed").exists()
    assert import_seed(photos / "captions.jsonl", tmp_path / "seed") == Counts(3, 3, 0)
    assert not list(tmp_path.glob(".*"))


def test_from_a_folder_of_images_to_an_asset_of_a_configuration(photos, tmp_path, monkeypatch, capsys):
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    Path("input/mine").mkdir(parents=True)  # an empty folder is a new one
    assert main(["data", "import", str(as_imagefolder(photos)), "input/mine"]) == 0
    assert "3 rows of 3 images in input/mine" in capsys.readouterr().out
    assert main(["assets", "adopt", "input/mine"]) == 0
    assert main(["assets", "fetch", "--asset", "mine", "--locked"]) == 0
    assert "mine: 6 files verified in input/mine" in capsys.readouterr().out
