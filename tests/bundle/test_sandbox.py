"""What a stranger's work can reach, and what it may take, where bubblewrap can run."""

import json
import os
import socket
import subprocess
import sys

import pytest

from toolkit.bundle import rebuild, sandbox
from toolkit.errors import UserError

MIB = 1 << 20
LIMITS = sandbox.Limits(hours=0.1, memory=400 * MIB, disk=64 * MIB)


@pytest.fixture
def inside(tmp_path):
    """Runs a Python program in the sandbox, with a folder of its own to write into: its exit status."""
    folder = tmp_path / "work"
    folder.mkdir()
    if reason := sandbox.refused(folder, LIMITS):
        pytest.skip(reason)

    def run(
        program: str, limits: sandbox.Limits = LIMITS, fixed: tuple[str, ...] = (), **variables: str
    ) -> int:
        command = [sys.executable, "-c", program]
        paths = [folder / name for name in fixed]
        return sandbox.run(command, folder, {"PATH": os.environ["PATH"]} | variables, paths, limits)

    run.folder = folder
    return run


def test_no_socket_connects(inside, tmp_path):
    """Neither to the network nor to a service of this machine, by TCP or by a socket's file."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        path = str(tmp_path / "service")
        local.bind(path)
        local.listen()
        abstract.bind(f"\0{path}")
        abstract.listen()
        places = [server.getsockname(), path, f"\0{path}", ("192.0.2.1", 80)]
        program = f"""
import json, socket
told = []
for place in {places!r}:
    with socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET) as client:
        client.settimeout(5)
        told.append(client.connect_ex(place))
json.dump(told, open("told.json", "w"))
"""
        outside = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
        assert outside.returncode == 0 and json.loads((tmp_path / "told.json").read_text())[:3] == [0, 0, 0]
        assert inside(program) == 0
    assert all(json.loads((inside.folder / "told.json").read_text()))


def test_keys_and_other_processes_are_invisible(inside, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/id_ed25519").write_text("a key")
    (inside.folder / "link").symlink_to(home / ".ssh/id_ed25519")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    variables = rebuild.environment(inside.folder)
    program = f"""
import os
from pathlib import Path
for path in {[str(home), __file__, "/root/.ssh", "/home", "/etc/shadow", "/run", "/var", "link"]!r}:
    assert not os.path.exists(path), path
processes = [path for path in Path("/proc").iterdir() if path.name.isdecimal()]
assert len(processes) <= 3, processes
for path in processes:
    assert "hf_mine" not in (path / "environ").read_text(errors="replace")
assert "hf_mine" not in os.environ.values()
assert os.environ["HOME"] == {str(inside.folder / rebuild.HOME)!r}
"""
    assert inside(program, **variables) == 0


def test_nothing_outside_can_be_written(inside, tmp_path):
    (inside.folder / "code.py").write_text("ours")
    places = ["/x", "/usr/x", "/etc/x", "/dev/x", "/sys/x", f"{sys.prefix}/x", str(inside.folder / "code.py")]
    places += [
        f"/proc/{name}" for name in ("sys/kernel/core_pattern", "sysrq-trigger", "irq/default_smp_affinity")
    ]
    program = f"""
import os
for path in {places!r}:
    try:
        os.open(path, os.O_WRONLY | os.O_CREAT)
    except OSError:
        continue
    raise SystemExit(f"{{path}} can be written")
try:  # in the /tmp of the sandbox at most
    open({str(tmp_path / "x")!r}, "w")
except OSError:
    pass
for change in (lambda: os.rename("code.py", "other.py"), lambda: os.unlink("code.py")):
    try:
        change()
    except OSError:
        continue
    raise SystemExit("code.py was changed")
open("mine", "w").write("x")
open("/tmp/mine", "w").write("x")
"""
    assert inside(program, fixed=("code.py",)) == 0
    assert (inside.folder / "code.py").read_text() == "ours"
    assert {path.name for path in inside.folder.iterdir()} == {"code.py", "mine"}
    assert not (tmp_path / "x").exists()


def test_a_memory_hog_ends(inside, capfd):
    """Alone it fails to allocate; shared out among processes the whole is ended, with what bounded it."""
    assert inside("x = bytearray(500 << 20)") == 1
    assert "MemoryError" in capfd.readouterr().err
    program = """
import subprocess, sys
hog = "x = bytearray(150 << 20); import time; time.sleep(600)"
[process.wait() for process in [subprocess.Popen([sys.executable, "-c", hog]) for _ in range(4)]]
"""
    with pytest.raises(
        UserError, match=r"took more memory than it may \(0.1 h, 0.4 GiB of memory.*--memory-gib"
    ):
        inside(program)


def test_time_and_disk_end(inside):
    program = """
import time
for number in range(4):
    open(str(number), "wb").write(bytes(20 << 20))
time.sleep(600)
"""
    # a single file is refused at once
    refused = """
import os
try:
    open("x", "wb").write(bytes(70 << 20))
except OSError:
    os.unlink("x")
else:
    raise SystemExit(9)
"""
    assert inside(refused) == 0
    with pytest.raises(UserError, match="took more disk than it may"):
        inside(program)
    with pytest.raises(UserError, match="took more time than it may"):
        inside("import time; time.sleep(600)", sandbox.Limits(1e-4, 400 * MIB, 1 << 30))


def test_what_it_starts_ends_with_it_and_steers_no_terminal(inside, capfd):
    program = """
import subprocess, sys
late = "import time; time.sleep(3); open('late', 'w').write('x')"
subprocess.Popen([sys.executable, "-c", late], start_new_session=True)
print("told", flush=True)
try:
    open("/dev/tty")
except OSError:
    pass
else:
    raise SystemExit(9)
"""
    assert inside(program) == 0
    assert "told" in capfd.readouterr().err and not (inside.folder / "late").exists()


def test_an_old_link_is_not_mounted(inside, tmp_path):
    """What an earlier run left in the folder decides nothing about the next one's mounts."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("a key")
    for name in (".tmp", ".tmp-", "tmp"):
        (inside.folder / name).symlink_to(private)
    assert inside("import os; assert 'key' not in os.listdir('/tmp'); open('/tmp/x', 'w')") == 0
    assert {path.name for path in private.iterdir()} == {"key"}


def test_without_bubblewrap_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.refused(tmp_path, LIMITS) == "bubblewrap (bwrap) is not installed"
    (tmp_path / "bwrap").write_text(
        "#!/bin/sh\necho bwrap: no permissions to create a new namespace >&2\nexit 1\n"
    )
    (tmp_path / "bwrap").chmod(0o755)
    assert sandbox.refused(tmp_path, LIMITS) == (
        "bubblewrap cannot run here (bwrap: no permissions to create a new namespace)"
    )
