"""Downloads against a local server: they continue, they are whole or absent, and an archive cannot write
elsewhere."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from toolkit import assets
from toolkit.assets import Download, Url, Zoo, download, fetch
from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json

DATA = bytes(range(256)) * 4000  # about 1 MB


class Server(ThreadingHTTPServer):
    """Serves `files`, a text as the address to go to; the first answer for a path in `cuts` ends after that
    many bytes. `lengths`: other Content-Length than the right one. `requests`: (path, Range header)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.lengths, self.requests, self.ranges = {}, {}, {}, [], True

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path[1:]
        given = self.headers.get("Range")
        self.server.requests.append((name, given))
        if name not in self.server.files:
            return self.send_error(404)
        body = self.server.files[name]
        start = (
            0
            if isinstance(body, str)
            else int(given.removeprefix("bytes=").rstrip("-"))
            if given and self.server.ranges
            else 0
        )
        if start >= len(body):
            return self.send_error(416)
        if isinstance(body, str):
            self.send_response(302)
            self.send_header("Location", body)
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", self.server.lengths.get(name, str(len(body) - start)))
        self.end_headers()
        self.wfile.write(body[start : self.server.cuts.pop(name, None)])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def entry(server, name="data.bin", body=DATA, served=None, **more):
    """An asset of one file whose registered checksum is that of `body`."""
    server.files[name] = body if served is None else served
    file = Download(name=name, url=server.url(name), sha256=hashlib.sha256(body).hexdigest(), **more)
    return Url(kind="url", role="test", serves="seed", licence="none", downloads=[file])


def archive(**members):
    """A .tar.gz: name -> bytes, or -> a link's target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_cut_download_continues(server, tmp_path):
    asset = entry(server)
    server.cuts["data.bin"] = 700_000
    assert fetch.fetch("thing", asset, tmp_path / "thing") == 1
    assert (tmp_path / "thing/data.bin").read_bytes() == DATA
    assert server.requests == [("data.bin", None), ("data.bin", "bytes=700000-")]
    manifest = read_json(tmp_path / "thing/manifest.json")
    assert manifest["files"] == {"data.bin": {"sha256": hashlib.sha256(DATA).hexdigest(), "bytes": len(DATA)}}


def test_a_later_run_continues_and_a_server_without_ranges_starts_over(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(DATA[:1000])
    fetch.fetch("thing", entry(server), tmp_path)
    assert server.requests == [("data.bin", "bytes=1000-")]
    (tmp_path / "data.bin").unlink()
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1000)
    server.ranges = False
    fetch.fetch("thing", entry(server), tmp_path)
    assert sha256(tmp_path / "data.bin") == hashlib.sha256(DATA).hexdigest()


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    fetch.fetch("thing", entry(server), tmp_path)
    fetch.fetch("thing", entry(server), tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("served", [DATA[:-1] + b"!", DATA[:5000], DATA + b"more"])
def test_wrong_bytes_leave_nothing_that_looks_whole(server, tmp_path, served):
    (tmp_path / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(UserError, match=r"manifest\.json is no manifest of an asset: move it away"):
        fetch.fetch("thing", entry(server, served=served), tmp_path)
    write_json(tmp_path / "manifest.json", {"asset": "thing", "source": {}, "files": {}})
    with pytest.raises(
        UserError, match=r"data\.bin could not be downloaded.*sha256 is [0-9a-f]{64}, the registry says"
    ):
        fetch.fetch("thing", entry(server, served=served), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "9" * 300])
def test_a_length_that_is_no_number(server, tmp_path, length):
    """Is no length: the checksum decides."""
    server.lengths["data.bin"] = length
    asset = entry(server)
    if length.isdigit():
        with pytest.raises(UserError, match=r"data\.bin could not be downloaded"):
            fetch.fetch("thing", asset, tmp_path)
    else:
        fetch.fetch("thing", asset, tmp_path)
        assert (tmp_path / "data.bin").read_bytes() == DATA


@pytest.mark.parametrize("stated", [True, False])
def test_no_more_than_the_file_has_is_fetched(server, tmp_path, stated):
    asset = entry(server, bytes=1000)
    if not stated:
        server.lengths["data.bin"] = "unknown"
    with pytest.raises(UserError, match=r"bytes.* expected"):
        fetch.fetch("thing", asset, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_server_that_sends_next_to_nothing_is_left(server, tmp_path, monkeypatch):
    """The clock is the test's: an hour for each look at it."""
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(download, "SLOWEST", len(DATA))
    with pytest.raises(UserError, match=r"bytes came in 60 s, which is too slow"):
        fetch.fetch("thing", entry(server), tmp_path)


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_only_http_is_fetched(server, tmp_path, scheme):
    """Neither from the registry nor by a redirection."""
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    address = {"file": secret.as_uri(), "ftp": "ftp://127.0.0.1/x", "data": "data:,x"}[scheme]
    with pytest.raises(ValidationError, match="should match pattern"):
        Download(name="a", url=address, sha256="0" * 64)
    with pytest.raises(ValidationError, match="should match pattern"):
        Download(name="a", url="https://a.org/b", mirrors=[address])
    with pytest.raises(UserError, match=r"data\.bin could not be downloaded"):
        fetch.fetch("thing", entry(server, served=address), tmp_path / "thing")
    assert not list((tmp_path / "thing").iterdir())


def test_a_mirror_helps(server, tmp_path):
    server.files["mirror.bin"] = DATA
    fetch.fetch("thing", entry(server, served=b"spoilt", mirrors=[server.url("mirror.bin")]), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_no_network_and_no_file_are_one_sentence(server, tmp_path):
    asset = entry(server)
    server.files.clear()
    with pytest.raises(UserError, match=r"^data\.bin could not be downloaded, check the network .*404"):
        fetch.fetch("thing", asset, tmp_path)
    asset = entry(server, mirrors=["http://nowhere.invalid/data.bin"])
    server.files.clear()
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        fetch.fetch("thing", asset, tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_an_archive_is_unpacked_without_its_folder(server, tmp_path):
    body = archive(**{"top/a.txt": b"a", "top/images/b.txt": b"bb"})
    assert fetch.fetch("thing", entry(server, "thing.tar.gz", body), tmp_path) == 2
    assert sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    ) == [
        "a.txt",
        "images/b.txt",
        "manifest.json",
    ]


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
def test_an_archive_cannot_write_elsewhere(server, tmp_path, members):
    folder = tmp_path / "deep/thing"
    with pytest.raises(UserError, match="a link or a name outside its one folder"):
        fetch.fetch("thing", entry(server, "thing.tar.gz", archive(**members)), folder)
    assert not (folder / "manifest.json").exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["thing.tar.gz"]


def test_a_truncated_archive_is_named(server, tmp_path):
    body = archive(**{"top/a.txt": DATA})
    with pytest.raises(UserError, match=r"thing\.tar\.gz cannot be unpacked"):
        fetch.fetch("thing", entry(server, "thing.tar.gz", body[: len(body) // 2]), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_unknown_checksums_are_refused_before_any_download(tmp_path):
    with pytest.raises(
        UserError, match=r"registry\.yaml under pretrain_stage_1\.downloads, fill in the sha256 of "
    ):
        fetch.fetch("pretrain_stage_1", assets.entry("pretrain_stage_1"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_asset_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown asset 'world-sed'.*world-seed"):
        assets.entry("world-sed")


def test_a_file_that_the_registry_promises_must_be_there(server, tmp_path):
    asset = entry(server).model_copy(update={"files": {"samples": "rows.jsonl"}})
    with pytest.raises(UserError, match=r"thing was fetched but has no rows\.jsonl"):
        fetch.fetch("thing", asset, tmp_path)
    assert not (tmp_path / "manifest.json").exists()


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
    with pytest.raises(UserError, match=r"holds mine\.txt, which is no file of this asset"):
        fetch.fetch("world-clip", entry, folder)
    (folder / "mine.txt").unlink()
    (folder / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(UserError, match=r"manifest\.json is no manifest of an asset"):
        fetch.fetch("world-clip", entry, folder)
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text("mine")
    with pytest.raises(UserError, match=r"holds config\.json"):
        fetch.fetch("world-clip", entry, folder)
    assert (folder / "config.json").read_text() == "mine"


def test_a_folder_may_be_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "clip").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        fetch.fetch("world-clip", assets.entry("world-clip"), tmp_path / "clip")
    assert (tmp_path / "clip").is_symlink() and (tmp_path / "elsewhere" / "manifest.json").is_file()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="which does not exist"):
        fetch.fetch("world-clip", assets.entry("world-clip"), tmp_path / "lost")
