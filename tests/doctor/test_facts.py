"""Doctor's eyes: parsers of what the system says, addresses that answer or do not, and this machine."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from toolkit.doctor import facts
from toolkit.doctor.facts import GPU

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:40 / /home rw - nfs4 server:/home rw
23 22 0:41 / /home/a\\040b rw - tmpfs tmpfs rw
24 21 0:42 / /data rw - ext4 /dev/sdb rw
25 24 0:43 / /data rw - fuse.sshfs server: rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/homes/x", "ext4"),
        ("/home/x/y", "nfs4"),
        ("/home/a b/c", "tmpfs"),
        ("/data/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder(folder, kind):
    assert facts.file_system(Path(folder), MOUNTS) == kind


@pytest.mark.parametrize(
    ("line", "facts_read"),
    [
        (
            "9.0, 580.65.06, 81559, 81000, NVIDIA H100",
            GPU("NVIDIA H100", "580.65.06", 9.0, 81559 << 20, 81000 << 20),
        ),
        ("470.82, 100, 50, A, B", GPU("A, B", "470.82", None, 100 << 20, 50 << 20)),
        ("8.0, 550.1, [N/A], [N/A], A100 MIG", GPU("A100 MIG", "550.1", 8.0, 0, 0)),
    ],
)
def test_a_line_of_nvidia_smi(line, facts_read):
    assert facts.gpu(line) == facts_read


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_hidden_gpus_are_not_there(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert facts.gpus() == ()


def test_a_group_around_this_one_may_limit_memory(tmp_path):
    (tmp_path / "job/step").mkdir(parents=True)
    (tmp_path / "job/memory.max").write_text("1000\n")
    (tmp_path / "job/step/memory.max").write_text("max\n")
    assert facts.group_limit("0::/job/step\n", tmp_path) == 1000
    assert facts.group_limit("0::/\n", tmp_path) == 2**63
    (tmp_path / "memory/job").mkdir(parents=True)
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712")
    (tmp_path / "memory/job/memory.limit_in_bytes").write_text("2000")
    assert facts.group_limit("4:memory:/job\n1:cpu:/job\n", tmp_path) == 2000
    # of a container, whose path lies outside of it
    (tmp_path / "memory/memory.limit_in_bytes").write_text("3000")
    assert facts.group_limit("4:memory:/docker/0123\n", tmp_path) == 3000


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served():
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_host_that_answers_is_reachable(served):
    assert facts.unreachable([f"http://{served}/200", "http://localhost:9/x"]).keys() == {"localhost:9"}
    assert facts.unreachable([f"http://{served}/404"]) == {}
    assert facts.unreachable([f"http://{served}/503"]) == {served: "status 503"}
    assert facts.unreachable([]) == {}


def test_this_machine_can_be_read(tmp_path):
    facts_read = facts.read(tmp_path)
    assert facts_read.memory >= facts_read.available > 0 and facts_read.disk > 0 and facts_read.file_system
    assert facts_read.unwritable == () and facts_read.unreachable is None and abs(facts_read.skew) < 2
    assert list(tmp_path.iterdir()) == []


def test_the_cuda_of_torch_is_read_without_importing_it():
    torch = pytest.importorskip("torch")
    cuda = torch.version.cuda
    assert facts.torch_cuda() == (cuda and int(cuda.partition(".")[0]))
