"""What is on the machine already: recognised by content and layout, linked, hashed, and left as it was."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from servers import REVISION, tar
from test_download import DATA, entry, listed

from toolkit import assets, config
from toolkit.__main__ import main
from toolkit.assets import File, Hub, Own, fetch, folder, lock, mirror, status
from toolkit.assets.adopt import adopt
from toolkit.errors import UserError
from toolkit.files import read_json, sha256

SEED = "pretrain_stage_1_10k"
ABOUT = {"role": "test", "licence": "none"}


@pytest.fixture
def registry(monkeypatch):
    """Stand-ins of the contest's entries with the sizes of a test: `model`'s checksum is published."""
    real = assets.entry(SEED)
    stripped = [
        file.model_copy(update={"sha256": None, "bytes": None, "published_by": None})
        for file in real.downloads
    ]
    weights = {"sha256": hashlib.sha256(DATA).hexdigest(), "published_by": "the test", "bytes": len(DATA)}
    model = Hub(
        kind="hub",
        serves="llm",
        repository="google/gem",
        revision=REVISION,
        downloads=[File(name="config.json"), File(name="model.safetensors", **weights)],
        **ABOUT,
    )
    entries = {SEED: real.model_copy(update={"downloads": stripped}), "gem-2b": model}
    monkeypatch.setattr(assets, "_shipped", lambda: entries)
    return entries


@pytest.fixture
def kit(tmp_path):
    """A checkout of the contest's kit after its downloads, with what a run leaves beside them."""
    root = tmp_path / "kit"
    seed = root / f"input/{SEED}"
    (seed / "images/00000").mkdir(parents=True)
    (seed / "images/00000/1.jpg").write_bytes(b"jpeg")
    (seed / "mgm_pretrain_stage_1_10k.jsonl").write_text("{}\n")
    (seed / "stage_1.json").write_text("[]")
    (seed / "mgm_pretrain_stage_1_10k.jsonl-200k.jsonl.json").write_text("[]")  # of a run
    model = root / "toolkit/training/model_zoo/LLM/gemma/gem-2b"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(DATA)
    (model / "README.md").write_text("not fetched")
    (root / "output").mkdir()
    return root


def tree(root):
    """Every file with its bytes, mode and time: nothing of it may change."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("ways", ["hard link", "symbolic link"])
def test_a_kit_is_recognised_linked_and_locked(registry, kit, project, monkeypatch, ways):
    if ways == "symbolic link":  # as on another file system

        def refused(*arguments):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(folder.Path, "hardlink_to", refused)
    monkeypatch.setattr(folder, "_cloned", lambda source, target: False)
    before = tree(kit)
    done, problems = adopt(kit, project / "input")
    assert problems == [] and [line.split(":")[0] for line in done] == [SEED, "gem-2b"]
    assert tree(kit) == before
    seed = project / "input" / SEED
    assert listed(seed) == [
        "images/00000/1.jpg",
        "manifest.json",
        "mgm_pretrain_stage_1_10k.jsonl",
        "stage_1.json",
    ]
    image, source = seed / "images/00000/1.jpg", kit / f"input/{SEED}/images/00000/1.jpg"
    assert image.samefile(source) and image.is_symlink() == (ways == "symbolic link")
    assert listed(project / "input/gem-2b") == ["config.json", "manifest.json", "model.safetensors"]
    book = lock.read()
    assert sorted(book[SEED]) == [
        "mgm_pretrain_stage_1_10k.jsonl",
        "pretrain_stage_1_10k.tar.gz/*",
        "stage_1.json",
    ]
    assert sorted(book["gem-2b"]) == ["config.json", "model.safetensors"]
    assert {line.address for lines in book.values() for line in lines.values()} == {"adopted"}
    assert str(kit) not in lock.LOCK.read_text()
    for name, value in registry.items():  # and a fetch needs no network
        fetch.fetch_all([fetch.Job(name, value, project / "input" / name)], locked=True)
    assert adopt(kit, project / "input")[1] == []  # twice is once


def test_an_adopted_asset_equals_a_fetched_one(registry, kit, server, project):
    """The same manifest, byte for byte, and the lock of the one holds for the other."""
    adopt(kit, project / "input")
    files = {f"top/{path}": (kit / f"input/{SEED}" / path).read_bytes() for path in ["images/00000/1.jpg"]}
    server.files["seed.tar.gz"] = tar(**files)
    downloads = []
    for file in registry[SEED].downloads:
        path = file.name if not file.archive else "seed.tar.gz"
        if not file.archive:
            server.files[path] = (kit / f"input/{SEED}" / path).read_bytes()
        downloads.append(file.model_copy(update={"url": server.url(path)}))
    there = registry[SEED].model_copy(update={"downloads": downloads})
    fetch.fetch(SEED, there, project / "fetched")
    adopted = read_json(project / "input" / SEED / "manifest.json")
    assert read_json(project / "fetched/manifest.json")["files"] == adopted["files"]


def test_a_damaged_model_names_both_values_and_the_rest_is_adopted(registry, kit, project):
    weights = kit / "toolkit/training/model_zoo/LLM/gemma/gem-2b/model.safetensors"
    weights.write_bytes(DATA[:-1] + b"!")
    done, problems = adopt(kit, project / "input")
    assert len(done) == 1 and len(problems) == 1
    assert f"gem-2b/model.safetensors: its sha256 is {sha256(weights)}" in problems[0]
    assert f"says {hashlib.sha256(DATA).hexdigest()}" in problems[0]
    assert not (project / "input/gem-2b").exists() and "gem-2b" not in lock.read()


def test_what_differs_from_the_lock_is_not_adopted(registry, kit, project):
    adopt(kit, project / "input")
    (kit / f"input/{SEED}/images/00000/1.jpg").unlink()  # a link: what was adopted stays
    (kit / f"input/{SEED}/images/00000/1.jpg").write_bytes(b"other")
    done, problems = adopt(kit, project / "input")
    assert len(done) == 1 and "the content of" in problems[0] and "assets.lock says" in problems[0]
    assert (project / f"input/{SEED}/images/00000/1.jpg").read_bytes() == b"jpeg"


def hub_cache(tmp_path, revision=REVISION):
    """As huggingface_hub lays it out."""
    root = tmp_path / "hub/models--google--gem"
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for name, body in {"config.json": b"{}", "model.safetensors": DATA}.items():
        blob = root / "blobs" / hashlib.sha256(body).hexdigest()
        blob.write_bytes(body)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return tmp_path / "hub"


def test_a_hub_cache_is_recognised_at_the_pinned_commit(registry, tmp_path, project):
    with pytest.raises(UserError, match=r"holds no asset of the registry and no seed set"):
        adopt(hub_cache(tmp_path / "other", "f" * 40), project / "input")
    done, problems = adopt(hub_cache(tmp_path), project / "input")
    assert len(done) == 1 and not problems
    line = lock.read()["gem-2b"]["model.safetensors"]
    assert (line.revision, line.address) == (REVISION, "adopted from a hub's cache")
    weights = project / "input/gem-2b/model.safetensors"
    assert weights.read_bytes() == DATA and not weights.is_symlink()  # the blob itself, not a link to a link


def test_a_model_in_a_folder_of_any_name_is_known_by_its_weights(registry, tmp_path, project):
    folder = tmp_path / "downloads/whatever"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(DATA)
    assert len(adopt(tmp_path / "downloads", project / "input")[0]) == 1
    (folder / "model.safetensors").write_bytes(DATA[::-1])
    with pytest.raises(UserError, match="holds no asset"):
        adopt(tmp_path / "downloads", project / "input")


@pytest.fixture
def mine(tmp_path):
    """A seed set of one's own."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.png").write_bytes(b"png")
    row = {"id": "a", "text": "<__dj__image>\na cat <|__dj__eoc|>", "images": ["images/a.png"]}
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "original.json").write_text("[]")
    return folder


def test_a_seed_set_of_ones_own_gets_a_name(mine, project, capsys):
    assert main(["assets", "adopt", str(mine), "--name", "my-photos"]) == 0
    assert "my-photos: 3 files of" in capsys.readouterr().out
    assert yaml.safe_load(assets.OWN.read_text())["my-photos"]["files"] == {
        "samples": "samples.jsonl",
        "original": "original.json",
    }
    assert isinstance(assets.entry("my-photos"), Own)
    assert "my-photos" in config.serving("seed")
    absent = status.states(["my-photos"], project / "elsewhere")
    text = status.table({"seed": "my-photos"}, ["seed"], absent)
    assert "| seed | my-photos |  | no | yes | run `assets adopt` |" in text
    job = fetch.Job("my-photos", assets.entry("my-photos"), project / "input/my-photos")
    assert fetch.fetch_all([job], locked=True) == {"my-photos": 3}
    assert main(["assets", "adopt", str(mine), "--name", "my-photos"]) == 0  # again: one entry
    assert assets.OWN.read_text().count("my-photos:") == 1
    (mine / "images/a.png").unlink()
    (project / "input/my-photos/images/a.png").unlink()
    (project / "input/my-photos/images/a.png").write_bytes(b"bad")
    with pytest.raises(UserError, match=r"my-photos: its sha256 is .*, assets\.lock says"):
        fetch.fetch_all([job])


def test_a_seed_set_is_the_same_when_it_is_adopted_again(mine, project, capsys):
    (mine / "rejected.jsonl").write_text("")  # as `data import` writes
    for _ in range(2):
        assert main(["assets", "adopt", str(mine)]) == 0
        assert f"{mine.name}: 4 files of" in capsys.readouterr().out
    shutil.rmtree(project / "input" / mine.name)
    assert main(["assets", "adopt", str(mine)]) == 0


def test_a_name_that_no_asset_may_have_is_refused_before_anything_is_written(mine, project, capsys):
    for name in ("my photos", "../photos", "été"):
        assert main(["assets", "adopt", str(mine), "--name", name]) == 1
        assert f"{name!r} cannot be the name of an asset" in capsys.readouterr().err
    mine.rename(mine.with_name("My photos"))
    assert main(["assets", "adopt", str(mine.with_name("My photos"))]) == 1
    assert "'My photos' cannot be the name of an asset" in capsys.readouterr().err
    assert not assets.OWN.exists() and not (project / "assets.lock").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("my photos: {}", "my photos: string should match pattern"),
        ("photos: {kind: own}", "photos.role: field required"),
        ("[1]", "input should be a valid dictionary"),
    ],
)
def test_a_file_of_assets_that_cannot_be_used_is_one_sentence(project, text, problem):
    assets.OWN.parent.mkdir(exist_ok=True)
    assets.OWN.write_text(text)
    with pytest.raises(UserError) as raised:
        assets.own()
    assert problem in str(raised.value) and "pydantic" not in str(raised.value)


def test_a_lock_that_cannot_be_used_is_one_sentence(project):
    (project / "assets.lock").write_text('{"version": 1, "assets": {"a": {"b.bin": {"sha256": 3}}}}')
    with pytest.raises(
        UserError, match=r"assets\.lock cannot be used: a\.b\.bin\.sha256: input should be a valid"
    ):
        lock.read(project / "assets.lock")


def test_a_seed_set_in_its_own_place_stays_there(mine, project):
    (project / "input").mkdir()
    mine.rename(project / "input/photos")
    adopt(project / "input/photos", project / "input")
    assert listed(project / "input/photos") == [
        "images/a.png",
        "manifest.json",
        "original.json",
        "samples.jsonl",
    ]
    assert not list((project / "input/photos").rglob(".*"))


def test_a_model_of_ones_own_fills_its_place_in_the_registry(tmp_path, project):
    """What the finals train further."""
    merged = tmp_path / "MGM-2B-Finetune-synth/merged"
    merged.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model-00001-of-00001.safetensors"):
        (merged / name).write_text("{}")
    with pytest.raises(UserError, match=r"is not own-mgm-2b: it lacks model\.safetensors\.index\.json"):
        adopt(merged, project / "input", "own-mgm-2b")
    (merged / "model.safetensors.index.json").write_text("{}")
    adopt(merged, project / "input", "own-mgm-2b")
    assert len(read_json(project / "input/own-mgm-2b/manifest.json")["files"]) == 4
    assert not assets.OWN.exists()  # the registry has it already
    job = fetch.Job("own-mgm-2b", assets.entry("own-mgm-2b"), project / "input/own-mgm-2b")
    assert fetch.fetch_all([job], locked=True) == {"own-mgm-2b": 4}


def test_what_is_no_seed_set_is_named(mine, project):
    (mine / "original.json").unlink()
    with pytest.raises(UserError, match=r"1 file of Data-Juicer's rows \(\.jsonl\) and 0 \.json"):
        adopt(mine, project / "input", "mine")
    (mine / "original.json").write_text("[]")
    with pytest.raises(UserError, match="is an asset of the registry"):
        adopt(mine, project / "input", "world-seed")
    with pytest.raises(UserError, match="is not a folder"):
        adopt(mine / "nothing", project / "input")


def test_own_assets_have_no_addresses_and_no_other_names(project):
    """solution/ of a stranger's entry is read by who rebuilds it."""
    assets.OWN.parent.mkdir()
    good = {"kind": "own", "serves": "seed", **ABOUT}
    for entries, words in [
        ({"a": {**good, "kind": "url", "downloads": []}}, "kind"),
        ({"../a": good}, "should match pattern"),
        ({"a": {**good, "files": {"samples": "../x"}}}, "path inside"),
        ({"world-seed": good}, "which toolkit/assets/registry.yaml already has"),
        (["a"], "valid dictionary"),
    ]:
        assets.OWN.write_text(yaml.safe_dump(entries))
        with pytest.raises(UserError, match=rf"^solution/assets\.yaml .*{words}"):
            assets.registry()


def test_a_mirror_serves_a_machine_without_network(server, tmp_path, project, monkeypatch):
    asset = entry(server, "x.tar.gz", tar(**{"top/a.txt": b"a", "top/b/c.txt": b"c"}), known=False)
    fetch.fetch("thing", asset, project / "input/thing")
    shipped = {"thing": asset, "world-clip": assets.entry("world-clip")}
    mirrored = tmp_path / "usb"
    assert mirror.export(shipped, project / "input", mirrored) == {"thing": 2}
    server.files.clear()
    monkeypatch.setenv("TOOLKIT_MIRROR", str(mirrored))
    before = len(server.requests)
    other = tmp_path / "offline"
    other.mkdir()
    monkeypatch.chdir(other)
    assert fetch.fetch_all([fetch.Job("thing", asset, other / "input/thing")]) == {"thing": 2}
    assert read_json("input/thing/manifest.json") == read_json(project / "input/thing/manifest.json")
    assert lock.read() == lock.read(project / "assets.lock")
    assert len(server.requests) == before
    assert not list((other / "input").rglob(".*"))


def test_a_mirror_is_compared_like_the_network(server, tmp_path, project, monkeypatch):
    asset = entry(server, known=False)
    fetch.fetch("thing", asset, project / "input/thing")
    mirrored = tmp_path / "usb"
    mirror.export({"thing": asset}, project / "input", mirrored)
    monkeypatch.setenv("TOOLKIT_MIRROR", str(mirrored))
    (mirrored / "thing/data.bin").unlink()
    (mirrored / "thing/data.bin").write_bytes(DATA[::-1])
    with pytest.raises(UserError, match=r"thing/data\.bin: its sha256 is .*manifest\.json says"):
        fetch.fetch("thing", asset, tmp_path / "other")
    value = {"sha256": sha256(mirrored / "thing/data.bin"), "bytes": len(DATA)}
    manifest = read_json(mirrored / "thing/manifest.json")
    (mirrored / "thing/manifest.json").write_text(json.dumps({**manifest, "files": {"data.bin": value}}))
    with pytest.raises(UserError, match=r"thing/data\.bin: its sha256 is .*assets\.lock says"):
        fetch.fetch("thing", asset, tmp_path / "other")
    monkeypatch.setenv("TOOLKIT_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="which is not a folder: mount it"):
        fetch.fetch("thing", asset, tmp_path / "other")


@pytest.mark.parametrize("name", ["../../solution/evil", "/tmp/evil", "a/../../evil"])
def test_a_mirror_writes_nothing_outside_the_assets_folder(server, tmp_path, project, monkeypatch, name):
    asset = entry(server, known=False)
    mirrored = tmp_path / "usb/thing"
    mirrored.mkdir(parents=True)
    (mirrored / "data.bin").write_bytes(DATA)
    files = {
        name: {"sha256": sha256(mirrored / "data.bin"), "bytes": len(DATA)} for name in ("data.bin", name)
    }
    manifest = {"asset": "thing", "source": {}, "files": files}
    (mirrored / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("TOOLKIT_MIRROR", str(tmp_path / "usb"))
    with pytest.raises(UserError, match="is not the manifest of an asset"):
        fetch.fetch("thing", asset, project / "input/thing")


def test_what_a_mirror_without_a_lock_holds_is_locked_on_first_use(server, tmp_path, project, monkeypatch):
    asset = entry(server, known=False)
    fetch.fetch("thing", asset, project / "input/thing")
    mirrored = tmp_path / "usb"
    mirror.export({"thing": asset}, project / "input", mirrored)
    (mirrored / "assets.lock").unlink()
    Path("assets.lock").unlink()
    monkeypatch.setenv("TOOLKIT_MIRROR", str(mirrored))
    fetch.fetch("thing", asset, tmp_path / "other")
    (line,) = lock.read()["thing"].values()
    assert line.sha256 == sha256(mirrored / "thing/data.bin") and line.address == "a mirror"


@pytest.mark.parametrize("files", [{"a": 1}, {"a": {"sha256": "00"}}, [], {"a": {"sha256": "0" * 64}}])
def test_a_damaged_manifest_is_one_sentence(tmp_path, files):
    (tmp_path / "manifest.json").write_text(json.dumps({"asset": "x", "source": {}, "files": files}))
    with pytest.raises(UserError, match="is not the manifest of an asset: move it away"):
        folder.manifest(tmp_path)


def test_folders_and_configurations_that_a_fetch_would_ignore_are_refused(capsys):
    for flags, message in (
        (["--all", "--output", "x"], "--output is the folder of one asset"),
        (["--asset", "world-gemma", "--config", "x.yaml"], "--config says which assets are needed"),
    ):
        assert main(["assets", "fetch", *flags]) == 1
        assert message in capsys.readouterr().err


def test_an_unfinished_asset_is_not_exported(server, tmp_path, project):
    with pytest.raises(UserError, match="is not whole: fetch that asset first"):
        mirror.export({"thing": entry(server)}, project / "input", tmp_path / "usb")


def test_status_before_and_after(registry, kit, project):
    roles = {"seed": SEED, "llm": "gem-2b", "itm": "gem-2b"}
    before = status.states(roles.values(), project / "input")
    assert (before["gem-2b"].present, before["gem-2b"].missing, before["gem-2b"].unknown) == (
        "no",
        len(DATA),
        1,
    )
    text = status.table(roles, ["seed", "llm"], before)
    assert (
        "| llm | gem-2b | 1.0 MB + 1 file of unknown size | no | 0 of 2 | 1.0 MB + 1 file of unknown" in text
    )
    assert "2 of 2 assets that the run reads are missing: 1.0 MB + 4 files of unknown size to fetch" in text
    adopt(kit, project / "input")
    after = status.states(roles.values(), project / "input")
    text = status.table(roles, ["seed", "llm"], after)
    assert "| llm | gem-2b | 1.0 MB | yes | yes |  | adopted |" in text
    assert "all 2 assets that the run reads are here" in text
    (project / "input/gem-2b/config.json").unlink()
    assert status.states(["gem-2b"], project / "input")["gem-2b"].present == "damaged"


def test_status_and_export_of_the_default_configuration(monkeypatch, capsys):
    """As a user calls them, in a folder that has nothing."""
    for part in ("solution", "toolkit"):
        folder.Path(part).symlink_to(config.__file__.rsplit("/", 3)[0] + f"/{part}")
    assert main(["assets", "status"]) == 0
    out = capsys.readouterr().out
    assert "| seed | world-seed |  | no | not needed | the run makes it |" in out
    assert "| itm | world-itm |  | no need | not needed |" in out and "missing: nothing to fetch" in out
    assert main(["assets", "export", "usb"]) == 0  # the world needs no mirror
    assert "nothing to export" in capsys.readouterr().out


def test_the_questions_of_a_search_are_an_asset_that_the_run_reads(monkeypatch, capsys):
    for part in ("solution", "toolkit", "workflow"):
        folder.Path(part).symlink_to(config.__file__.rsplit("/", 3)[0] + f"/{part}")
    search = folder.Path("workflow/config/search.yaml")
    assert "world-development" in config.assets_read(config.read(search))
    assert "world-development" not in config.assets_read(config.Config())
    assert main(["assets", "status", "--config", str(search)]) == 0
    assert "| search.development | world-development |  | no |" in capsys.readouterr().out


def test_all_that_a_configuration_reads_is_fetched(monkeypatch, project, capsys):
    monkeypatch.setattr(config, "roles", lambda settings: ["clip", "convnext"])
    assert main(["assets", "fetch", "--all", "--locked"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "world-clip: 5 files verified in input/world-clip",
        "world-convnext: 2 files verified in input/world-convnext",
    ]


def test_the_roles_that_a_run_reads_are_the_rules_and_the_recipes(tmp_path, monkeypatch):
    (tmp_path / "r").mkdir()
    monkeypatch.setattr(config, "RECIPES", tmp_path / "r")
    (tmp_path / "r/baseline.yaml").write_text("process: []")
    (tmp_path / "r/recaption.yaml").write_text('process: [{x: {hf_blip: "{itm}", other: {clip}}}]')
    assert config.roles(config.Config()) == [*config.RULES_READ, "itm"]
