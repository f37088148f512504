"""assets.lock: recorded on first use, compared ever after; the registry wins; kill -9 and several at once."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import tar
from test_download import DATA, SHA256, entry, listed

from toolkit.assets import Own, fetch, lock
from toolkit.assets.lock import Locked
from toolkit.errors import UserError
from toolkit.files import read_json

ROOT = Path(__file__).parents[2]


def line(sha256=SHA256, **more):
    return Locked(sha256=sha256, bytes=1, address="http://a.org/b", date="2026-11-27", **more)


def test_a_first_use_is_recorded_and_plain_http_is_said(server, tmp_path, project, capsys):
    fetch.fetch("thing", entry(server, known=False), tmp_path / "thing")
    assert read_json("assets.lock") == {
        "version": 1,
        "assets": {
            "thing": {
                "data.bin": {
                    "sha256": SHA256,
                    "bytes": len(DATA),
                    "address": server.url("data.bin"),
                    "date": lock.today(),
                }
            }
        },
    }
    assert (
        "thing: data.bin came over plain http, and nobody publishes its checksum" in capsys.readouterr().err
    )
    fetch.fetch("known", entry(server), tmp_path / "known")
    assert "plain http" not in capsys.readouterr().err


def test_a_later_difference_names_both_values(server, tmp_path):
    asset = entry(server, known=False)
    fetch.fetch("thing", asset, tmp_path / "thing")
    server.files["data.bin"] = DATA[::-1]
    with pytest.raises(UserError) as raised:
        fetch.fetch("thing", asset, tmp_path / "other")
    other = hashlib.sha256(DATA[::-1]).hexdigest()
    assert f"its sha256 is {other}, assets.lock says {SHA256}" in str(raised.value)


def test_another_content_of_an_archive_names_both_values(server, tmp_path):
    """The archive's own checksum is not in the lock after an adopt."""
    asset = entry(server, "x.tar.gz", tar(**{"top/a": b"a"}), known=False)
    lock.add(lock.LOCK, "thing", {"x.tar.gz/*": line("1" * 64)})
    with pytest.raises(UserError, match=rf"the content of thing/x\.tar\.gz: .* assets\.lock says {'1' * 64}"):
        fetch.fetch("thing", asset, tmp_path / "thing")


def test_a_published_checksum_wins(server, tmp_path):
    lock.add(lock.LOCK, "thing", {"data.bin": line("1" * 64)})
    with pytest.raises(UserError, match=rf"has the sha256 {'1' * 64}, .* says {SHA256}, which wins: remove"):
        fetch.fetch("thing", entry(server), tmp_path / "thing")
    assert not server.requests


def test_locked_refuses_what_is_not_in_the_lock(server, tmp_path):
    known, unknown = entry(server), entry(server, "other.bin", known=False)
    jobs = [fetch.Job("thing", known, tmp_path / "thing"), fetch.Job("other", unknown, tmp_path / "other")]
    with pytest.raises(UserError, match=r"assets\.lock has no data\.bin of thing, and --locked"):
        fetch.fetch_all(jobs, locked=True)
    assert not server.requests
    fetch.fetch_all(jobs)
    for job in jobs:
        fetch.fetch_all([job._replace(folder=tmp_path / "again" / job.name)], locked=True)


@pytest.mark.parametrize(
    "text", ["{", '{"version": 2, "assets": {}}', '{"version": 1, "assets": {"a": {"b": 1}}}']
)
def test_a_damaged_lock_is_named(text):
    lock.LOCK.write_text(text)
    with pytest.raises(UserError, match=r"^assets\.lock "):
        lock.read()


def test_no_line_is_lost_when_many_are_added_at_once():
    names = [f"a{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: lock.add(lock.LOCK, name, {"x": line()}), names))
    assert sorted(lock.read()) == sorted(names)
    lock.add(lock.LOCK, "a1", {"x": line(revision="9" * 40)})  # the first one stays
    assert lock.read()["a1"]["x"].revision is None
    with pytest.raises(UserError, match=r"assets\.lock says"):
        lock.add(lock.LOCK, "a1", {"x": line("2" * 64)})


def test_an_asset_of_ones_own_has_no_address(tmp_path):
    mine = Own(kind="own", role="mine", serves="seed", licence="none")
    with pytest.raises(UserError, match=r"no address has it: run `assets adopt`"):
        fetch.fetch("mine", mine, tmp_path / "mine")


# in another process: kill -9 leaves nothing behind that it could clean up
FETCH = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}]
from toolkit.assets import Download, Url, archive, download, fetch, folder, lock
name, phase = sys.argv[1:3]
target, url = Path(sys.argv[3]), sys.argv[4]
import os, signal
def die(*arguments, **more): os.kill(os.getpid(), signal.SIGKILL)
class Dying:  # some call of a function
    def __init__(self, call, left=3): self.call, self.left = call, left
    def __call__(self, *arguments, **more):
        self.left -= 1
        return self.call(*arguments, **more) if self.left else die()
match phase:
    case "connect": download._remember = die
    case "download":
        step = Dying(download.Meter.step, 4)
        download.Meter.step = lambda self, count: step(self, count)
    case "rename": download.os.fsync = die
    case "unpack": archive.shutil.copyfileobj = Dying(archive.shutil.copyfileobj)
    case "digest": fetch.digests = die
    case "lock": lock.write_json = die
    case "locked": fetch.finish = die
    case "place": fetch.move = Dying(fetch.move)
    case "manifest": folder.write_json = die
    case "clean": folder.shutil.rmtree = Dying(folder.shutil.rmtree, 2)
entry = Url(kind="url", role="test", serves="seed", licence="none",
    downloads=[Download(name=name, url=url + "/" + name), Download(name="data.bin", url=url + "/data.bin")])
print(fetch.fetch("thing", entry, target))
"""


def run(server, tmp_path, phase):
    script = FETCH.format(here=str(ROOT))
    arguments = ["x.tar.gz", phase, str(tmp_path / "thing"), server.url("").rstrip("/")]
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "phase",
    ["connect", "download", "rename", "unpack", "digest", "lock", "locked", "place", "manifest", "clean"],
)
def test_killed_in_any_phase_the_next_fetch_finishes(server, tmp_path, phase):
    server.files["x.tar.gz"] = tar(**{f"top/{number}.txt": bytes([number]) * 9000 for number in range(9)})
    server.files["data.bin"] = DATA
    killed = run(server, tmp_path, phase)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    manifest = tmp_path / "thing/manifest.json"
    assert manifest.exists() == (phase == "clean")
    asked = [path for path, _ in server.gets()]
    done = run(server, tmp_path, "none")
    assert done.returncode == 0, done.stderr
    assert listed(tmp_path / "thing") == sorted(
        [*(f"{n}.txt" for n in range(9)), "data.bin", "manifest.json"]
    )
    assert sorted(lock.read()["thing"]) == ["data.bin", "x.tar.gz", "x.tar.gz/*"]
    if phase not in ("connect", "download", "rename"):  # the archive was whole
        assert "x.tar.gz" not in [path for path, _ in server.gets()][len(asked) :]
    for path, stated in read_json(manifest)["files"].items():
        assert hashlib.sha256((tmp_path / "thing" / path).read_bytes()).hexdigest() == stated["sha256"]


def test_two_fetches_at_once_fetch_once(server, tmp_path):
    server.pause = 0.02
    server.files["x.tar.gz"], server.files["data.bin"] = tar(**{"top/a": b"a"}), DATA
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: run(server, tmp_path, "none"), range(3)))
    assert [process.returncode for process in done] == [0, 0, 0], done
    assert len(server.gets()) == 2
    assert listed(tmp_path / "thing") == ["a", "data.bin", "manifest.json"]


def test_where_no_file_can_be_made_it_is_said(tmp_path):
    """Linux says of /proc that there is no such file; so does a link whose target's folder is absent."""
    (tmp_path / "link").symlink_to(tmp_path / "absent/file")
    for path in (Path("/proc/thing/.partial/held"), tmp_path / "link"):
        with pytest.raises(FileNotFoundError), lock.exclusive(path):
            pass


def test_a_second_fetch_waits_for_the_first_and_a_killed_one_holds_nothing(tmp_path):
    held = tmp_path / "thing/.partial/held"
    script = (
        f"import sys, time; sys.path[:0] = [{str(ROOT)!r}]\nfrom pathlib import Path\n"
        "from toolkit.assets.lock import exclusive\n"
        f"with exclusive(Path({str(held)!r})):\n    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: lock.exclusive(held).__enter__())
            time.sleep(0.2)
            assert not waiting.done()
            os.kill(process.pid, signal.SIGKILL)
            assert waiting.result(60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
