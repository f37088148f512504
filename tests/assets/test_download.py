"""Downloads from a server that misbehaves: they continue, are whole or absent, and say what happened."""

import errno
import hashlib
import io

import pytest
from pydantic import ValidationError
from servers import tar

from toolkit.assets import Download, Url, download, fetch, folder, lock
from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json

DATA = bytes(range(256)) * 4000  # about 1 MB
SHA256 = hashlib.sha256(DATA).hexdigest()


def entry(server, name="data.bin", body=DATA, served=None, known=True, **more):
    """An asset of one file whose registered checksum, if known, is that of `body`."""
    server.files[name] = body if served is None else served
    stated = {"sha256": hashlib.sha256(body).hexdigest(), "published_by": "the test"} if known else {}
    file = Download(name=name, url=server.url(name), **stated, **more)
    return Url(kind="url", role="test", serves="seed", licence="none", downloads=[file])


@pytest.fixture
def thing(tmp_path):
    return tmp_path / "thing"


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("known", [True, False])
def test_a_cut_download_continues(server, thing, known):
    asset = entry(server, known=known)
    server.cuts["data.bin"] = [700_000]
    assert fetch.fetch("thing", asset, thing) == 1
    assert (thing / "data.bin").read_bytes() == DATA
    assert server.gets() == [("data.bin", None), ("data.bin", "bytes=700000-")]
    assert read_json(thing / "manifest.json")["files"] == {"data.bin": {"sha256": SHA256, "bytes": len(DATA)}}
    assert listed(thing) == ["data.bin", "manifest.json"]


def test_a_download_that_is_cut_off_again_and_again_gets_there(server, thing):
    """As long as each connection brings something."""
    server.cuts["data.bin"] = [150_000] * 6
    fetch.fetch("thing", entry(server), thing)
    assert (thing / "data.bin").read_bytes() == DATA


def test_a_server_that_brings_nothing_is_given_up(server, thing):
    server.cuts["data.bin"] = [0] * 9
    with pytest.raises(UserError, match=rf"cut off after 0 of {len(DATA)} bytes"):
        fetch.fetch("thing", entry(server), thing)
    assert len(server.gets()) == download.ATTEMPTS
    assert not (thing / "manifest.json").exists()


def test_a_later_run_continues_and_a_server_without_ranges_starts_over(server, thing):
    partial = thing / ".partial"
    partial.mkdir(parents=True)
    (partial / "data.bin.part").write_bytes(DATA[:1000])
    fetch.fetch("thing", entry(server), thing)
    assert server.gets() == [("data.bin", "bytes=1000-")]
    (thing / "data.bin").unlink()
    partial.mkdir()
    (partial / "data.bin.part").write_bytes(b"x" * 1000)
    server.ranges = False
    fetch.fetch("thing", entry(server), thing)
    assert sha256(thing / "data.bin") == SHA256


def test_what_was_begun_of_an_unknown_file_is_continued_only_while_it_is_the_same(server, thing, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    asset = entry(server, known=False)
    server.cuts["data.bin"] = [700_000]
    with pytest.raises(UserError, match="cut off after 700000"):
        fetch.fetch("thing", asset, thing)
    server.files["data.bin"] = DATA[::-1]  # another file under the same address
    fetch.fetch("thing", asset, thing)
    assert (thing / "data.bin").read_bytes() == DATA[::-1]


def test_without_a_version_an_unknown_file_starts_over(server, thing, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    asset = entry(server, known=False)
    server.etags["data.bin"] = ""
    server.cuts["data.bin"] = [700_000]
    with pytest.raises(UserError, match="cut off after 700000"):
        fetch.fetch("thing", asset, thing)
    fetch.fetch("thing", asset, thing)
    assert server.gets() == [("data.bin", None), ("data.bin", None)]
    assert (thing / "data.bin").read_bytes() == DATA


def test_another_part_than_the_one_asked_for_is_not_appended(server, thing):
    server.cuts["data.bin"] = [700_000]
    server.parts["data.bin"] = 0
    with pytest.raises(UserError, match="another part of the file than that from byte 700000"):
        fetch.fetch("thing", entry(server, known=False), thing)
    assert (thing / ".partial/data.bin.part").read_bytes() == DATA[:700_000]


def test_416_for_a_whole_file_and_for_one_that_is_too_long(server, thing):
    (thing / ".partial").mkdir(parents=True)
    (thing / ".partial/data.bin.part").write_bytes(DATA)
    fetch.fetch("thing", entry(server), thing)
    assert server.gets() == [("data.bin", f"bytes={len(DATA)}-")]
    other = thing.with_name("other")
    (other / ".partial").mkdir(parents=True)
    (other / ".partial/data.bin.part").write_bytes(DATA + b"more")
    with pytest.raises(UserError, match=f"data.bin could not be downloaded.*sha256 is .* says {SHA256}"):
        fetch.fetch("other", entry(server), other)
    fetch.fetch("other", entry(server), other)  # the next one starts over
    assert (other / "data.bin").read_bytes() == DATA


def test_416_for_an_unknown_file_starts_over(server, thing):
    (thing / ".partial").mkdir(parents=True)
    (thing / ".partial/data.bin.part").write_bytes(DATA + b"more")
    (thing / ".partial/data.bin.tag").write_text(f'"{SHA256}"')
    fetch.fetch("thing", entry(server, known=False), thing)
    assert (thing / "data.bin").read_bytes() == DATA


def test_what_is_there_is_not_fetched_again(server, thing):
    fetch.fetch("thing", entry(server), thing)
    fetch.fetch("thing", entry(server), thing)
    assert len(server.gets()) == 1


@pytest.mark.parametrize("served", [DATA[:-1] + b"!", DATA[:5000], DATA + b"more"])
def test_wrong_bytes_leave_nothing_that_looks_whole(server, thing, served):
    thing.mkdir()
    (thing / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(UserError, match=r"manifest\.json is not the manifest of an asset: move it away"):
        fetch.fetch("thing", entry(server, served=served), thing)
    write_json(thing / "manifest.json", {"asset": "thing", "source": {}, "files": {}})
    wrong = hashlib.sha256(served).hexdigest()
    with pytest.raises(
        UserError,
        match=rf"data\.bin could not be downl.*sha256 is {wrong}, .*published by the test\) says {SHA256}",
    ):
        fetch.fetch("thing", entry(server, served=served), thing)
    assert listed(thing) == ["manifest.json"]
    assert lock.read() == {}


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "9" * 300])
def test_a_length_that_is_no_number(server, thing, length):
    """Is no length: the checksum decides, and without one nothing can."""
    server.lengths["data.bin"] = length
    asset = entry(server)
    if length.isdigit():
        with pytest.raises(UserError, match=r"data\.bin could not be downloaded"):
            fetch.fetch("thing", asset, thing)
    else:
        fetch.fetch("thing", asset, thing)
        assert (thing / "data.bin").read_bytes() == DATA
        with pytest.raises(UserError, match="does not say how long the file is"):
            fetch.fetch("other", entry(server, known=False), thing.with_name("other"))


def test_a_length_that_is_too_short_or_too_long(server, thing):
    server.lengths["data.bin"] = "5000"
    with pytest.raises(UserError, match=f"sha256 is {hashlib.sha256(DATA[:5000]).hexdigest()}"):
        fetch.fetch("thing", entry(server), thing)
    server.lengths["data.bin"] = str(len(DATA) + 1)
    with pytest.raises(UserError, match=f"cut off after {len(DATA)} of {len(DATA) + 1} bytes"):
        fetch.fetch("thing", entry(server, known=False), thing)
    assert len(server.gets()) < 20 and not (thing / "data.bin").exists()


@pytest.mark.parametrize("stated", [True, False])
def test_no_more_than_the_file_has_is_fetched(server, thing, stated):
    asset = entry(server, bytes=1000)
    if not stated:
        server.lengths["data.bin"] = ""
    with pytest.raises(UserError, match=r"bytes.* expected"):
        fetch.fetch("thing", asset, thing)
    assert not listed(thing)


def test_an_unknown_file_of_another_size_than_the_registry_says(server, thing):
    with pytest.raises(UserError, match=f"it has {len(DATA)} bytes, {len(DATA) + 5} are expected"):
        fetch.fetch("thing", entry(server, known=False, bytes=len(DATA) + 5), thing)
    assert lock.read() == {}


def test_a_server_that_sends_next_to_nothing_is_left(server, thing, monkeypatch):
    """The clock is the test's: an hour for each look at it."""
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(download, "SLOWEST", len(DATA))
    with pytest.raises(UserError, match=r"bytes came in 60 s, which is too slow"):
        fetch.fetch("thing", entry(server), thing)


def test_a_slow_server_is_waited_for(server, thing):
    server.pause = 0.01
    fetch.fetch("thing", entry(server), thing)
    assert (thing / "data.bin").read_bytes() == DATA


def test_a_server_that_is_busy_is_asked_again_when_it_says(server, thing, monkeypatch):
    slept = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    server.status["data.bin"] = [(429, {"Retry-After": "7"}), (503, {})]
    fetch.fetch("thing", entry(server), thing)
    assert [seconds for seconds in slept if seconds != server.pause] == [7.0]
    assert len(server.gets()) == 3
    server.status["data.bin"] = [(429, {"Retry-After": "86400"})]
    with pytest.raises(UserError, match="429"):  # nobody waits for a day
        fetch.fetch("other", entry(server), thing.with_name("other"))


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_only_http_is_fetched(server, tmp_path, scheme):
    """Neither from the registry nor by a redirection."""
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    address = {"file": secret.as_uri(), "ftp": "ftp://127.0.0.1/x", "data": "data:,x"}[scheme]
    with pytest.raises(ValidationError, match="should match pattern"):
        Download(name="a", url=address)
    with pytest.raises(ValidationError, match="should match pattern"):
        Download(name="a", url="https://a.org/b", mirrors=[address])
    with pytest.raises(UserError, match=r"data\.bin could not be downloaded"):
        fetch.fetch("thing", entry(server, served=address), tmp_path / "thing")
    assert not listed(tmp_path / "thing")


def test_redirections_are_followed_but_not_for_ever(server, thing):
    server.files["real.bin"] = DATA
    fetch.fetch("thing", entry(server, served=server.url("real.bin")), thing)
    assert (thing / "data.bin").read_bytes() == DATA
    with pytest.raises(UserError, match="infinite loop"):
        fetch.fetch("other", entry(server, served=server.url("data.bin")), thing.with_name("other"))


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", ".partial/x", "manifest.json", "a\\b", "."]
)
def test_a_name_stays_in_its_folder(name):
    with pytest.raises(ValidationError, match="path"):
        Download(name=name, url="https://a.org/b")


def test_a_checksum_names_who_states_it():
    with pytest.raises(ValidationError, match="published_by must say who"):
        Download(name="a", url="https://a.org/b", sha256="0" * 64)


def test_a_mirror_helps(server, thing):
    server.files["mirror.bin"] = DATA
    asset = entry(server, served=b"spoilt", mirrors=[server.url("mirror.bin")])
    fetch.fetch("thing", asset, thing)
    assert (thing / "data.bin").read_bytes() == DATA
    assert lock.read()["thing"]["data.bin"].address == server.url("mirror.bin")


def test_no_network_and_no_file_are_one_sentence(server, thing):
    asset = entry(server)
    server.files.clear()
    with pytest.raises(UserError, match=r"^data\.bin could not be downloaded, check the network .*404"):
        fetch.fetch("thing", asset, thing)
    asset = entry(server, mirrors=["http://nowhere.invalid/data.bin"])
    server.files.clear()
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        fetch.fetch("thing", asset, thing)
    assert not (thing / "manifest.json").exists()


def test_no_password_or_signature_of_an_address_is_printed_or_recorded(server, thing, capsys):
    server.files["data.bin?signature=s3cret"] = DATA
    url = server.url("data.bin?signature=s3cret").replace("http://", "http://me:passw0rd@")
    file = Download(name="data.bin", url=url)
    asset = Url(kind="url", role="test", serves="seed", licence="none", downloads=[file])
    with pytest.raises(UserError) as raised:
        fetch.fetch("thing", asset, thing)
    assert "passw0rd" not in str(raised.value) and "s3cret" not in str(raised.value)
    with pytest.raises(UserError) as raised:
        fetch.fetch_all([fetch.Job("thing", asset, thing)])
    assert "passw0rd" not in str(raised.value) + "".join(capsys.readouterr())


def test_a_full_disk_is_said_and_what_came_is_kept(server, thing, monkeypatch):
    """The disk is full after 300,000 bytes; with room, the next run continues."""
    real = io.BufferedWriter.write
    room = [300_000]

    class Full(io.BufferedWriter):
        def write(self, data):
            if len(data) > room[0]:
                raise OSError(errno.ENOSPC, "No space left on device", "data.bin.part")
            room[0] -= len(data)
            return real(self, data)

    whole = download.Path.open

    def opened(path, mode="r", *arguments, **more):
        if path.name.endswith(".part") and mode in ("ab", "wb"):
            return Full(io.FileIO(path, mode.replace("b", "")))
        return whole(path, mode, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(download, "BLOCK", 1 << 16)
        patch.setattr(download.Path, "open", opened)
        with pytest.raises(OSError, match="No space left") as raised:
            fetch.fetch("thing", entry(server), thing)
    assert raised.value.errno == errno.ENOSPC
    have = (thing / ".partial/data.bin.part").stat().st_size
    assert 0 < have <= 300_000
    fetch.fetch("thing", entry(server), thing)
    assert server.gets()[-1] == ("data.bin", f"bytes={have}-")


def test_room_on_the_disk_is_looked_for_before_the_first_byte(server, thing, monkeypatch):
    usage = type("Usage", (), {"free": 5 << 30})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    asset = entry(server, bytes=10 << 30)
    with pytest.raises(UserError, match=r"11\.8 GB of free disk are needed in .*, there are 5\.4 GB"):
        fetch.fetch_all([fetch.Job("thing", asset, thing)])
    body = tar(**{"top/a": DATA})
    server.lengths["a.tar.gz"] = str(3 << 30)  # unpacked it is counted again
    with pytest.raises(UserError, match=r"7\.5 GB of free disk are needed"):
        fetch.fetch_all([fetch.Job("thing", entry(server, "a.tar.gz", body, known=False), thing)])
    assert not server.gets() and not thing.exists()


def test_several_assets_come_side_by_side_under_one_progress(server, tmp_path, capsys):
    jobs = [
        fetch.Job(
            f"a{number}",
            entry(server, f"{number}.bin", DATA * 3, bytes=len(DATA) * 3),
            tmp_path / f"a{number}",
        )
        for number in range(6)
    ]
    assert fetch.fetch_all(jobs) == {f"a{number}": 1 for number in range(6)}
    assert "fetched (MB): 17/17 (100 %)" in capsys.readouterr().err
    assert sorted(lock.read()) == [f"a{number}" for number in range(6)]
    server.files.pop("0.bin"), server.files.pop("3.bin")
    for number in (0, 3, 4):
        folder.shutil.rmtree(tmp_path / f"a{number}")
    with pytest.raises(UserError, match=r"^a0: 0\.bin could not .*404.*\na3: 3\.bin could not .*404"):
        fetch.fetch_all(jobs)
    assert (tmp_path / "a4/manifest.json").is_file()


def test_when_one_cannot_go_on_the_others_end_too(server, tmp_path, monkeypatch):
    """The disk is full for the first; the second is slow and does not come to its end."""
    server.pause = 0.1
    jobs = [fetch.Job(name, entry(server, f"{name}.bin", DATA), tmp_path / name) for name in ("full", "slow")]
    real = fetch.from_network

    def full(name, *arguments):
        if name == "full":
            while not server.gets():  # the other one is on its way
                pass
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, *arguments)

    monkeypatch.setattr(fetch, "from_network", full)
    with pytest.raises(OSError, match="No space left"):
        fetch.fetch_all(jobs)
    assert not (tmp_path / "slow/manifest.json").exists()
    server.pause = 0
    fetch.fetch_all(jobs[1:])
    assert len(server.gets()) == 2 and server.gets()[1][1]  # what came was kept
