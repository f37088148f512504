"""Files of a hub, from a server of this machine that HF_ENDPOINT names."""

import hashlib

import pytest
from servers import REVISION
from test_download import listed

from toolkit import assets
from toolkit.assets import File, Hub, download, fetch, lock
from toolkit.errors import UserError

WEIGHTS = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
TOKEN = "hf_S3cretT0ken"


@pytest.fixture
def hub(server, monkeypatch):
    """A hub with the repository google/gem: config.json and model.safetensors, which lies on another host."""
    monkeypatch.setenv("HF_ENDPOINT", server.url("").rstrip("/"))
    server.add_repository("google/gem", **{"config.json": b"{}", "model.safetensors": WEIGHTS})
    return server


def entry(revision=REVISION, sha256=None, **more):
    stated = {"sha256": sha256, "published_by": "the test"} if sha256 else {}
    files = [File(name="config.json"), File(name="model.safetensors", **stated)]
    about = {"role": "test", "serves": "llm", "licence": "none"}
    return Hub(kind="hub", **about, repository="google/gem", revision=revision, downloads=files, **more)


def test_files_of_a_pinned_commit(hub, tmp_path):
    assert fetch.fetch("gem", entry(sha256=SHA256), tmp_path / "gem") == 2
    assert listed(tmp_path / "gem") == ["config.json", "manifest.json", "model.safetensors"]
    line = lock.read()["gem"]["model.safetensors"]
    assert (line.sha256, line.bytes, line.revision) == (SHA256, len(WEIGHTS), REVISION)
    assert line.address == hub.url(f"google/gem/resolve/{REVISION}/model.safetensors")
    before = len(hub.requests)
    fetch.fetch("gem", entry(sha256=SHA256), tmp_path / "gem")
    assert len(hub.requests) == before  # what is there needs no network


def test_a_cut_download_continues(hub, tmp_path):
    name = f"google/gem/resolve/{REVISION}/model.safetensors"
    hub.cuts[name] = [600_000]
    fetch.fetch("gem", entry(), tmp_path / "gem")
    assert [given for path, given in hub.gets() if path == name] == [None, "bytes=600000-"]


def test_an_unpinned_repository_is_pinned_by_the_lock(hub, tmp_path):
    fetch.fetch("gem", entry(revision=None), tmp_path / "gem")
    assert {line.revision for line in lock.read()["gem"].values()} == {REVISION}
    assert [path for _, path, _ in hub.requests].count("api/models/google/gem") == 1
    fetch.fetch("gem", entry(revision=None), tmp_path / "again")
    assert [path for _, path, _ in hub.requests].count("api/models/google/gem") == 1


def test_the_checksum_that_the_hub_states_is_compared_on_first_use(hub, tmp_path):
    """A hub names a large file by its SHA-256."""
    name = f"google/gem/resolve/{REVISION}/model.safetensors"
    hub.files[name] = hub.url("elsewhere")  # the storage has other bytes than the hub says
    hub.files["elsewhere"] = WEIGHTS[::-1]
    linked = {"X-Linked-Etag": f'"{SHA256}"', "X-Linked-Size": str(len(WEIGHTS)), "X-Repo-Commit": REVISION}
    hub.status[name] = [(302, {"Location": hub.files[name].replace("127.0.0.1", "localhost"), **linked})]
    with pytest.raises(UserError, match=rf"sha256 is \w+, the hub says {SHA256}"):
        fetch.fetch("gem", entry(), tmp_path / "gem")
    assert "model.safetensors" not in lock.read()["gem"]


def test_a_published_checksum_wins_over_the_hub(hub, tmp_path):
    with pytest.raises(UserError, match=rf"sha256 is {SHA256}, .*published by the test\) says {'0' * 64}"):
        fetch.fetch("gem", entry(sha256="0" * 64), tmp_path / "gem")


def test_a_gated_model_is_explained(hub, tmp_path):
    hub.gated["google/gem"] = TOKEN
    with pytest.raises(UserError) as raised:
        fetch.fetch("gem", entry(), tmp_path / "gem")
    assert (
        "google/gem is gated: accept its terms on https://huggingface.co/google/gem, make a token on "
        "https://huggingface.co/settings/tokens and set it as HF_TOKEN"
    ) in str(raised.value)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, tmp_path, monkeypatch, capfd):
    hub.gated["google/gem"] = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    name = f"google/gem/resolve/{REVISION}/model.safetensors"
    hub.files["storage"] = WEIGHTS
    hub.files[name] = hub.url("storage").replace("127.0.0.1", "localhost")  # another host
    fetch.fetch("gem", entry(), tmp_path / "gem")
    sent = dict(hub.tokens)
    assert sent[name] == f"Bearer {TOKEN}" and sent["storage"] is None
    hub.status[name] = [(403, {})] * 9
    with pytest.raises(UserError, match="403") as raised:
        fetch.fetch("gem", entry(), tmp_path / "other")
    everything = str(raised.value) + "".join(capfd.readouterr())
    everything += "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "S3cret" not in everything


def test_a_mirror_has_what_the_hub_refuses(hub, tmp_path):
    hub.gated["google/gem"] = TOKEN
    hub.files |= {"modelscope/config.json": b"{}", "modelscope/model.safetensors": WEIGHTS}
    fetch.fetch("gem", entry(mirrors=[hub.url("modelscope")]), tmp_path / "gem")
    assert lock.read()["gem"]["model.safetensors"].address == hub.url("modelscope/model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hub: hub.files.clear(), r"no such file \(404\)"),
        (
            lambda hub: hub.status.update(
                {f"google/gem/resolve/{REVISION}/config.json": [(404, {"X-Error-Code": "RevisionNotFound"})]}
            ),
            "no such commit",
        ),
        (
            lambda hub: hub.status.update(
                {f"google/gem/resolve/{REVISION}/config.json": [(401, {"X-Error-Code": "RepoNotFound"})]}
            ),
            "no such repository, or your HF_TOKEN may not see it",
        ),
        (
            lambda hub: hub.status.update({f"google/gem/resolve/{REVISION}/config.json": [(500, {})] * 9}),
            "HTTP status 500",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, tmp_path, change, words):
    change(hub)
    with pytest.raises(UserError, match=words):
        fetch.fetch("gem", entry(), tmp_path / "gem")


def test_a_hub_that_is_busy_is_asked_again(hub, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    hub.status[f"google/gem/resolve/{REVISION}/config.json"] = [(429, {"Retry-After": "3"})]
    fetch.fetch("gem", entry(), tmp_path / "gem")
    assert 3.0 in slept


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"config\.json could not be downloaded, check the network.*ConnectError"
    ):
        fetch.fetch("gem", entry(), tmp_path / "gem")


def test_the_registry_pins_what_is_known():
    """Each model of the contest has its commit and the checksums of its weights."""
    for name, weights in {
        "gemma-2b-it": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "clip-vit-large-patch14-336": ["pytorch_model.bin"],
        "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": ["open_clip_pytorch_model.bin"],
        "blip2-opt-2.7b": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "gpt2": ["model.safetensors"],
    }.items():
        model = assets.entry(name)
        assert model.revision
        known = {file.name for file in model.downloads if file.sha256}
        assert known >= set(weights)
