"""An export reaches a hub whole, and nothing else does; the hub is a server of this machine."""

import json
import logging
import socket

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from servers import UploadServer, running

from toolkit.__main__ import main
from toolkit.assets.folder import digests, present
from toolkit.files import write_json

CARD = "---\nlicense: gemma\n---\n\n# mgm\n"
PROOF = {"questions": 3, "answers_equal": 3, "max_logit_difference": 0.0, "tolerance": 1e-4}
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.fixture
def folder(tmp_path):
    """What export writes, with weights that are noise."""
    folder = tmp_path / "mgm"
    folder.mkdir()
    for number, name in enumerate(SHARDS):
        header = json.dumps({"w": {"dtype": "U8", "shape": [3000], "data_offsets": [0, 3000]}}).encode()
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes([number] * 3000))
    (folder / "config.json").write_text("{}\n")
    write_json(folder / "proof.json", PROOF | {"files": digests(present(folder))})
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, the token for it, and no waiting."""
    with running(UploadServer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url("").rstrip("/"))
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_http.time, "sleep", lambda _: None)
        yield server


@pytest.fixture
def push(folder, hub, capfd):
    """The command with further arguments: (status, what it printed). Never among it: the token, and bars
    where there is no terminal."""

    def run(*flags, to="me/mgm"):
        status = main(["export", "push", str(folder), "--to", to, *flags])
        text = "".join(capfd.readouterr())
        assert hub.token not in text and "%|" not in text
        return status, text

    return run


def names(hub):
    return set(hub.repositories["me/mgm"])


ALL = {*SHARDS, "config.json", "proof.json", "README.md", ".gitattributes"}


def test_without_yes_nothing_is_sent(push, hub, folder):
    status, text = push()
    assert status == 0 and hub.requests == []
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert (
        f"to {hub.url('me/mgm')}, private, licence gemma:" in text and f"{size:,}  bytes in 5 files" in text
    )
    assert all(path.name in text for path in folder.iterdir())
    assert "the same command with --yes uploads these files" in text
    assert ", public, licence" in push("--public")[1]


@pytest.mark.parametrize("flags", [[], ["--public"]])
def test_what_is_there_is_what_was_exported(push, hub, flags):
    status, text = push("--yes", *flags)
    assert status == 0 and names(hub) == ALL and len(hub.stored) == 2
    assert f"{hub.url('me/mgm')}: 5 of 5 files sent; the hub lists all of them" in text
    assert hub.private["me/mgm"] == (not flags)
    assert {token for name, token in hub.tokens if name.startswith("storage/")} == {None}


def test_only_what_changed_is_sent_again(push, hub, folder):
    push("--yes")
    (folder / "README.md").write_text(CARD + "better\n")
    before = len(hub.requests)
    status, text = push("--yes")
    assert status == 0 and "1 of 5 files sent" in text
    assert not [name for _, name, _ in hub.requests[before:] if name.startswith("storage/")]
    assert "0 of 5 files sent" in push("--yes")[1]


def test_an_interrupted_upload_continues(push, hub, folder):
    second = digests(present(folder))[SHARDS[1]]["sha256"]
    hub.cuts[f"storage/{second}"] = [100] * 9
    status, text = push("--yes")
    assert status == 1 and "broke off" in text and "what has arrived is not sent again" in text
    assert names(hub) == {".gitattributes"} and len(hub.stored) == 1
    hub.cuts.clear()
    before = len(hub.requests)
    assert push("--yes")[0] == 0 and names(hub) == ALL
    puts = [name for method, name, _ in hub.requests[before:] if method == "PUT"]
    assert puts == [f"storage/{second}"]


def test_a_connection_that_breaks_once_is_tried_again(push, hub, folder, monkeypatch, caplog):
    library = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(library, "handlers", [caplog.handler])
    library.setLevel(logging.WARNING)
    second = digests(present(folder))[SHARDS[1]]["sha256"]
    hub.cuts[f"storage/{second}"] = [100]
    assert push("--yes")[0] == 0 and names(hub) == ALL
    assert not caplog.records  # they would name the address, which may be signed


def test_large_files_go_to_xet_storage_where_the_library_has_it(push, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert push("--yes")[0] == 0 and names(hub) == ALL
    assert not hub.stored and any(name.startswith("v1/xorbs") for name in hub.chunks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "proof.json").unlink(), "has no proof.json"),
        (lambda folder: write_json(folder / "proof.json", PROOF), "does not say which files were proved"),
        (lambda folder: (folder / "config.json").write_text("[]\n"), "config.json is not the file that was"),
        (lambda folder: (folder / SHARDS[0]).unlink(), f"{SHARDS[0]} is missing"),
        (lambda folder: (folder / ".env").write_text("KEY=1"), ".env is not a file that an export writes"),
        (lambda folder: (folder / "README.md").write_text("# mgm\n"), "names no licence"),
        (lambda folder: (folder / "README.md").write_text("---\n[\n---\n"), "metadata of"),
        (
            lambda folder: (folder / "README.md").write_text(f"{CARD}\nghp_{'a1B2c3D4e5F6' * 3}\n"),
            "README.md, line 7 holds a token of GitHub: delete it here and revoke it",
        ),
    ],
)
def test_a_folder_that_is_not_an_export_is_refused(push, hub, folder, change, words):
    change(folder)
    status, text = push("--yes")
    assert status == 1 and words in text and text.count("\n") == 1
    assert hub.requests == []


@pytest.mark.parametrize("result", [{"answers_equal": 2}, {"max_logit_difference": 0.1}])
def test_a_proof_that_failed_is_refused(push, hub, folder, result):
    proof = json.loads((folder / "proof.json").read_text())
    write_json(folder / "proof.json", proof | result)
    status, text = push("--yes")
    assert status == 1 and "says that the export is not its source" in text and hub.requests == []


def test_a_card_that_leads_elsewhere_is_refused(push, hub, folder, tmp_path):
    (tmp_path / "elsewhere").write_text(CARD)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "elsewhere")
    status, text = push("--yes")
    assert status == 1 and "README.md is not a file that an export writes" in text and hub.requests == []


def test_what_says_whose_machine_it_was_is_shown_before(push, folder):
    (folder / "README.md").write_text(f"{CARD}trained in /home/alice/runs\n")
    status, text = push()
    assert status == 0 and "look at it first: README.md, line 6 names a home directory" in text


def test_a_token_is_needed(push, hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    status, text = push("--yes")
    assert status == 1 and "no token: make one on" in text and hub.requests == []
    (tmp_path / "token").write_text(hub.token)  # as `hf auth login` stores it
    assert push("--yes")[0] == 0


def test_a_token_that_the_hub_does_not_know(push, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    status, text = push("--yes")
    assert status == 1 and "refuses your token: make one on" in text and "hf_another" not in text


def test_a_token_without_the_right_to_write(push, hub):
    status, text = push("--yes", to="google/mgm")
    assert status == 1 and "your token may not write to google/mgm" in text
    hub.create("me/mgm")
    hub.status["api/models/me/mgm/preupload/main"] = [(403, {})]
    assert "your token may not write to me/mgm" in push("--yes")[1]


def test_a_repository_with_other_files_stays(push, hub):
    hub.create("me/mgm", **{"flowers.csv": b"1", "README.md": b"mine"})
    before = dict(hub.repositories["me/mgm"])
    status, text = push("--yes")
    assert status == 1 and "me/mgm holds flowers.csv, which is not a file of this export" in text
    assert hub.repositories["me/mgm"] == before and not hub.stored


@pytest.mark.parametrize(
    ("private", "flags", "words"),
    [(True, ["--public"], "is private: leave out --public"), (False, [], "is public: add --public")],
)
def test_a_repository_stays_as_visible_as_it_was(push, hub, private, flags, words):
    hub.create("me/mgm", private)
    status, text = push("--yes", *flags)
    assert status == 1 and f"me/mgm exists and {words}" in text and names(hub) == {".gitattributes"}


def test_a_hub_that_cannot_be_reached(push, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        status, text = push("--yes")
    assert status == 1 and "was not reached or broke off (ConnectError): check the network" in text


def test_offline_is_said(push, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, text = push("--yes")
    assert status == 1 and "HF_HUB_OFFLINE is set" in text and hub.requests == []


def test_what_the_hub_says_of_the_card_and_of_itself(push, hub, folder):
    (folder / "README.md").write_text(CARD.replace("gemma", "none"))
    status, text = push("--yes")
    assert status == 1 and "Invalid metadata in README.md. - license must be one of the hub's" in text
    (folder / "README.md").write_text(CARD)
    hub.status["api/models/me/mgm/commit/main"] = [(500, {})]
    assert "answers with HTTP status 500: run the same command again" in push("--yes")[1]


@pytest.mark.parametrize("name", ["config.json", SHARDS[0], "flowers.csv"])
def test_a_hub_that_holds_something_else_is_found(push, hub, name):
    """It takes the commit, and then lists other bytes of the same length, or a file more."""
    hub.altered[name] = b"[]\n" if name == "config.json" else bytes(3074)
    status, text = push("--yes")
    assert status == 1 and "does not hold the files of" in text and f"{name} differs there" in text


@pytest.mark.parametrize("name", ["mgm", "me/mgm/x", "me/", "../mgm"])
def test_a_name_that_no_hub_has_is_wrong_usage(push, name):
    with pytest.raises(SystemExit) as raised:
        push(to=name)
    assert raised.value.code == 2


def test_export_itself_still_needs_its_flags(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--model", "x"])
    assert "required: --output\n" in capsys.readouterr().err
