"""The locks: complete, disjoint, hashed, and the same for pip, conda and the container."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "requirements"


def blocks(name: str) -> dict[str, str]:
    text = (FOLDER / f"{name}.lock").read_text()
    return {re.match(r"[\w.-]+", block).group(): block for block in re.split(r"\n(?=[a-z])", text.strip())}


def test_every_requirement_is_pinned_with_hashes():
    for name in ("common", "torch-cpu", "torch-cuda", "uv"):
        for package, block in blocks(name).items():
            assert "==" in block.splitlines()[0] and "--hash=sha256:" in block, package


def test_the_overlays_hold_torch_and_what_cuda_needs_and_nothing_else():
    common, cpu, cuda = blocks("common"), blocks("torch-cpu"), blocks("torch-cuda")
    assert set(cpu) == {"torch"} and "+cpu" in cpu["torch"].splitlines()[0]
    assert not set(common) & (set(cpu) | set(cuda))
    assert all(package == "torch" or package.startswith(("nvidia-", "cuda-", "triton")) for package in cuda)


def test_every_direct_dependency_is_in_the_lock():
    wanted = re.findall(r"^([a-z][\w.-]*)", (FOLDER / "project.in").read_text(), flags=re.M)
    assert len(wanted) > 25
    assert not set(wanted) - set(blocks("common")) - {"torch"}


def test_no_lock_names_a_host_or_a_folder():
    for lock in FOLDER.glob("*.lock"):
        assert not re.search(r"https?://|file:|^\s*--(?!hash)", lock.read_text(), flags=re.M), lock.name


def test_conda_installs_the_same_locks_with_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = environment["dependencies"][-1]["pip"]
    assert "--require-hashes" in pip
    assert {line.split()[1] for line in pip if line.startswith("-r")} == {
        "requirements/common.lock",
        "requirements/torch-cpu.lock",
    }
    python = re.search(r'PYTHON = "(.*)"', (FOLDER / "lock.py").read_text()).group(1)
    assert f"python={python}" in environment["dependencies"]
    assert f"--python {python} " in (ROOT / "Makefile").read_text()
    assert (blocks("uv")["uv"]).splitlines()[0] == blocks("common")["uv"].splitlines()[0]


@pytest.mark.parametrize(
    ("lock", "handed_on"), [("torch-cpu", ["--find-links", "/wheels"]), ("torch-cuda", [])]
)
def test_the_cpus_torch_does_not_stand_in_for_cudas(monkeypatch, lock, handed_on):
    """Where pip finds the CPU's wheel, uv would take 2.13.0+cpu for the newer 2.13.0."""
    install, commands = runpy.run_path(str(FOLDER / "install.py")), []

    def run(command, **options):
        if "uv" not in command:
            return subprocess.CompletedProcess(command, 0, stdout=":env:.find-links='/wheels'\n")
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert install["main"]("python", "common.lock", f"{lock}.lock") == 0
    links = [place for place, word in enumerate(commands[0]) if word == "--find-links"]
    assert [word for place in links for word in commands[0][place : place + 2]] == handed_on
