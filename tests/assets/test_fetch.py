"""Folders of assets are whole or unfinished, what is the user's stays, and no archive writes elsewhere."""

import hashlib
from pathlib import Path

import pytest
from servers import tar, zipped
from test_download import DATA, entry, listed

from toolkit import assets
from toolkit.assets import Package, Zoo, fetch, lock
from toolkit.errors import UserError
from toolkit.files import write_json


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_is_unpacked_without_its_folder(server, tmp_path, pack, known):
    name = "thing.tar.gz" if pack is tar else "thing.zip"
    body = pack(**{"top/a.txt": b"a", "top/images/b.txt": b"bb"})
    asset = entry(server, name, body, known=known)
    for _ in range(2):  # the second one looks at the files alone
        assert fetch.fetch("thing", asset, tmp_path / "thing") == 2
        assert listed(tmp_path / "thing") == ["a.txt", "images/b.txt", "manifest.json"]
    assert len(server.gets()) == 1
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {path}\n"
        for path, data in [("a.txt", b"a"), ("images/b.txt", b"bb")]
    )
    content = lock.read()["thing"][f"{name}/*"]
    assert (content.sha256, content.bytes, content.files) == (
        hashlib.sha256(lines.encode()).hexdigest(),
        3,
        2,
    )


def test_a_folder_of_an_archive_and_a_folder_to_unpack_to(server, tmp_path):
    body = tar(**{"repo/data/seed/a.txt": b"a", "repo/readme": b"r", "repo/data/other/b.txt": b"b"})
    asset = entry(server, "repo.tar.gz", body, take="*/data/seed", into="images")
    assert fetch.fetch("thing", asset, tmp_path / "thing") == 1
    assert listed(tmp_path / "thing") == ["images/a.txt", "manifest.json"]
    asset = entry(server, "all.zip", zipped(**{"00/a.txt": b"a", "01/b.txt": b"b"}), take=".")
    fetch.fetch("all", asset, tmp_path / "all")
    assert listed(tmp_path / "all") == ["00/a.txt", "01/b.txt", "manifest.json"]
    asset = entry(server, "repo.tar.gz", body, take="*/nothing")
    with pytest.raises(UserError, match=r"holds no file in its folder \*/nothing"):
        fetch.fetch("other", asset, tmp_path / "other")


@pytest.mark.parametrize(
    "members",
    [
        {"top/../../evil.txt": b"x"},
        {"/tmp/evil.txt": b"x"},
        {"evil.txt": b"x"},
        {"top/link": "/etc", "top/link/evil.txt": b"x"},
        {"top/link": "inside.txt"},
    ],
)
@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_cannot_write_elsewhere(server, tmp_path, members, pack):
    folder = tmp_path / "deep/thing"
    name = "thing.tar.gz" if pack is tar else "thing.zip"
    with pytest.raises(UserError, match="a link or a name outside its one folder"):
        fetch.fetch("thing", entry(server, name, pack(**members)), folder)
    assert not (folder / "manifest.json").exists()
    assert listed(tmp_path / "deep") == [f"thing/.partial/{name}"]  # it will be fetched anew
    assert lock.read() == {}


@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_truncated_archive_is_named(server, tmp_path, pack):
    name = "thing.tar.gz" if pack is tar else "thing.zip"
    body = pack(**{"top/a.txt": DATA})
    with pytest.raises(UserError, match=r"thing\.\S+ cannot be unpacked"):
        fetch.fetch("thing", entry(server, name, body[: len(body) // 2]), tmp_path / "thing")
    assert not (tmp_path / "thing/manifest.json").exists()


def test_an_archive_that_the_user_put_there_is_used(server, tmp_path):
    folder = tmp_path / "thing"
    folder.mkdir()
    body = tar(**{"top/a.txt": b"a"})
    (folder / "thing.tar.gz").write_bytes(body)
    asset = entry(server, "thing.tar.gz", body, known=False)
    assert fetch.fetch("thing", asset, folder) == 1
    assert not server.gets() and listed(folder) == ["a.txt", "manifest.json"]
    assert lock.read()["thing"]["thing.tar.gz"].address == f"{folder / 'thing.tar.gz'}, where it lay"


def test_a_file_of_the_users_with_another_checksum_is_not_replaced(server, tmp_path):
    folder = tmp_path / "thing"
    folder.mkdir()
    (folder / "data.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"data\.bin: its sha256 is \w{64}, .* says \w{64}: move it away"):
        fetch.fetch("thing", entry(server), folder)
    assert (folder / "data.bin").read_bytes() == b"mine" and not server.gets()


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    folder = tmp_path / "thing"
    asset = entry(server)
    fetch.fetch("thing", asset, folder)
    (folder / "data.bin").write_bytes(b"damaged")
    fetch.fetch("thing", asset, folder)
    assert (folder / "data.bin").read_bytes() == DATA
    body = tar(**{"top/a.txt": b"aaa", "top/b.txt": b"b"})
    asset = entry(server, "x.tar.gz", body, known=False)
    fetch.fetch("archive", asset, tmp_path / "archive")
    (tmp_path / "archive/a.txt").write_bytes(b"bad")
    fetch.fetch("archive", asset, tmp_path / "archive")
    assert (tmp_path / "archive/a.txt").read_bytes() == b"aaa"


def test_an_unknown_asset_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown asset 'world-sed'.*world-seed"):
        assets.entry("world-sed")


def test_a_file_that_the_registry_promises_must_be_there(server, tmp_path):
    asset = entry(server).model_copy(update={"files": {"samples": "rows.jsonl"}})
    with pytest.raises(UserError, match=r"thing was fetched but has no rows\.jsonl"):
        fetch.fetch("thing", asset, tmp_path / "thing")
    assert not (tmp_path / "thing/manifest.json").exists()


def test_a_model_of_the_zoo_is_copied_and_compared(tmp_path, monkeypatch):
    zoo = tmp_path / "zoo"
    (zoo / "tower").mkdir(parents=True)
    (zoo / "tower/model.safetensors").write_bytes(DATA)
    write_json(
        zoo / "zoo.json", {"files": {"tower/model.safetensors": {"sha256": hashlib.sha256(DATA).hexdigest()}}}
    )
    monkeypatch.setattr(fetch, "ZOO", zoo)
    asset = Zoo(kind="zoo", role="test", serves="seed", licence="none", folder="tower")
    assert fetch.fetch("tower", asset, tmp_path / "out") == 1
    assert (tmp_path / "out/model.safetensors").read_bytes() == DATA
    (zoo / "tower/model.safetensors").write_bytes(DATA + b"!")
    with pytest.raises(UserError, match="is missing or not the file that its manifest lists"):
        fetch.fetch("tower", asset, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == DATA  # the earlier one stays whole


def test_weights_inside_an_installed_package_are_copied_and_compared(tmp_path, monkeypatch):
    member = {"path": "thing/models/a.onnx", "sha256": hashlib.sha256(DATA).hexdigest()}
    about = {"role": "test", "serves": "ocr", "licence": "none"}
    asset = Package(
        kind="package", **about, package="thing-of-ours", extra="more", members={"model.onnx": member}
    )
    with pytest.raises(
        UserError, match=r"thing-of-ours, which is not installed: run `make setup EXTRAS=more`"
    ):
        fetch.fetch("thing", asset, tmp_path / "out")
    installed = tmp_path / "site"
    (installed / "thing/models").mkdir(parents=True)
    (installed / "thing_of_ours-1.0.dist-info").mkdir()
    (installed / "thing_of_ours-1.0.dist-info/METADATA").write_text("Name: thing-of-ours\nVersion: 1.0\n")
    (installed / "thing/models/a.onnx").write_bytes(DATA)
    monkeypatch.syspath_prepend(str(installed))
    assert fetch.fetch("thing", asset, tmp_path / "out") == 1
    assert (tmp_path / "out/model.onnx").read_bytes() == DATA
    other = r"thing-of-ours 1\.0 has other files than .* `make setup EXTRAS=more`"
    for spoil in (lambda path: path.write_bytes(DATA + b"!"), Path.unlink):
        spoil(installed / "thing/models/a.onnx")
        with pytest.raises(UserError, match=other):
            fetch.fetch("thing", asset, tmp_path / "out")
        assert (tmp_path / "out/model.onnx").read_bytes() == DATA  # the earlier one stays whole
    packed = asset.model_copy(update={"archive": "thing/all.zip"})
    archive = installed / "thing/all.zip"
    archive.write_bytes(zipped(**{member["path"]: DATA}))
    assert fetch.fetch("packed", packed, tmp_path / "packed") == 1
    assert (tmp_path / "packed/model.onnx").read_bytes() == DATA
    for content in (b"PK no zip", b""):
        archive.write_bytes(content)
        with pytest.raises(UserError, match=other):
            fetch.fetch("packed", packed, tmp_path / "packed")
    archive.unlink()
    with pytest.raises(UserError, match=other):
        fetch.fetch("packed", packed, tmp_path / "packed")
    assert lock.read() == {}


def test_a_fetch_deletes_nothing_but_an_earlier_fetch(tmp_path):
    entry = assets.entry("world-clip")
    folder = tmp_path / "clip"
    files = fetch.fetch("world-clip", entry, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert fetch.fetch("world-clip", entry, folder) == files  # the manifest lists it, so it may be put right
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "manifest.json").unlink()
    (folder / ".partial").mkdir()
    assert fetch.fetch("world-clip", entry, folder) == files  # cut off before its manifest was written
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds mine\.txt, which is not a file of this asset"):
        fetch.fetch("world-clip", entry, folder)
    (folder / "mine.txt").unlink()
    (folder / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(UserError, match=r"manifest\.json is not the manifest of an asset"):
        fetch.fetch("world-clip", entry, folder)
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text("mine")
    with pytest.raises(UserError, match=r"holds config\.json"):
        fetch.fetch("world-clip", entry, folder)
    assert (folder / "config.json").read_text() == "mine"
    assert lock.read() == {}  # what the toolkit ships or draws itself needs no lock


def test_a_folder_may_be_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "clip").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        fetch.fetch("world-clip", assets.entry("world-clip"), tmp_path / "clip")
    assert (tmp_path / "clip").is_symlink() and (tmp_path / "elsewhere" / "manifest.json").is_file()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="which does not exist"):
        fetch.fetch("world-clip", assets.entry("world-clip"), tmp_path / "lost")


def test_what_lies_beside_the_named_files_of_an_archive_is_not_the_assets(server, tmp_path):
    """A public repository's folder holds what its owner's runs wrote there, too."""
    body = tar(**{"top/rows.jsonl": b"{}", "top/rows.jsonl.1": b"{}", "top/images/a.jpg": b"a"})
    asset = entry(server, "x.tar.gz", body).model_copy(update={"files": {"samples": "rows.jsonl"}})
    fetch.fetch("thing", asset, tmp_path / "thing")
    assert listed(tmp_path / "thing") == ["images/a.jpg", "manifest.json", "rows.jsonl"]


def test_without_its_manifest_an_unpacked_archive_is_still_known(server, tmp_path):
    """Snakemake deletes what a rule makes before it runs the rule."""
    asset = entry(server, "x.tar.gz", tar(**{"top/a.txt": b"a", "top/b/c.txt": b"c"}), known=False)
    fetch.fetch("thing", asset, tmp_path / "thing")
    (tmp_path / "thing/manifest.json").unlink()
    assert fetch.fetch("thing", asset, tmp_path / "thing") == 2
    assert len(server.gets()) == 1
