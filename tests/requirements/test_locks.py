"""The locks: complete, disjoint, hashed, and the same for pip, conda and the container."""

import os
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "requirements"
OVERLAYS = ("torch-cpu", "torch-cuda", "torch-cuda12")
EXTRAS = ("slurm", "ocr", "models", "tensorboard", "fuzz", "search", "axe")
SOURCES = ("connection-pool", "deepspeed", "emoji", "wget")  # have no wheels


def blocks(name: str) -> dict[str, str]:
    text = (FOLDER / f"{name}.lock").read_text()
    return {re.match(r"[\w.-]+", block).group(): block for block in re.split(r"\n(?=[a-z])", text.strip())}


def test_every_requirement_is_pinned_with_hashes():
    for name in ("common", *OVERLAYS, *EXTRAS, "lmms", "security", "uv"):
        for package, block in blocks(name).items():
            assert "==" in block.splitlines()[0] and "--hash=sha256:" in block, package


def test_the_overlays_hold_torch_and_what_cuda_needs_and_nothing_else():
    common, cpu, *cuda = map(blocks, ("common", *OVERLAYS))
    assert set(cpu) == {"torch", "torchvision"} and "+cpu" in cpu["torch"].splitlines()[0]
    for lock in (cpu, *cuda):
        assert not set(common) & set(lock) and set(cpu) <= set(lock)
        others = set(lock) - set(cpu)
        assert all(package.startswith(("nvidia-", "cuda-", "triton")) for package in others)


def test_the_lock_of_lmms_eval_holds_what_is_not_locked_already():
    ours, harness = blocks("common") | blocks("torch-cpu"), blocks("lmms")
    requirement = re.findall(r"^[a-z].*", (FOLDER / "lmms.in").read_text(), flags=re.M)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert requirement == extras["lmms"] == [harness["lmms-eval"].splitlines()[0].split()[0]]
    assert not {name for name in harness if harness[name] == ours.get(name)}
    assert not {name for name in harness if name.startswith(("torch", "nvidia-", "transformers=="))}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_lock_of_an_extra_leaves_the_others_as_they_are(extra):
    lock = blocks(extra)
    assert not set(lock) & set(blocks("common") | blocks("torch-cpu"))
    requirements = re.findall(r"^[a-z].*", (FOLDER / f"{extra}.in").read_text(), flags=re.M)
    assert {re.match(r"[\w-]+", requirement).group() for requirement in requirements} <= set(lock)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.get(extra, requirements) == requirements


@pytest.mark.parametrize(("lock", "major"), [("torch-cuda", 13), ("torch-cuda12", 12)])
def test_each_cuda_lock_has_one_cuda(lock, major):
    runtime = [name for name in blocks(lock) if name.startswith("nvidia-cuda-runtime")]
    (pinned,) = (blocks(lock)[name].splitlines()[0].split()[0] for name in runtime)
    assert pinned.partition("==")[2].startswith(f"{major}.")
    suffixes = {name.rpartition("-cu")[2] for name in blocks(lock) if "-cu1" in name}
    assert suffixes == {str(major)}


def test_cuda_12_takes_the_torch_that_is_asked_for():
    pinned = re.findall(r"^(torch\w*==\S+)", (FOLDER / "cuda12.in").read_text(), flags=re.M)
    lock = blocks("torch-cuda12")
    assert pinned == [lock[name].splitlines()[0].split()[0] for name in ("torch", "torchvision")]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("lock", ["torch-cuda", "torch-cuda12"])
def test_an_installer_accepts_the_locks_together(lock, python, tmp_path):
    """Resolved on a machine with CUDA and this Python, not installed; needs the index."""
    locks = [part for name in ("common", lock) for part in ("-r", str(FOLDER / f"{name}.lock"))]
    platform = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
    built = ["--only-binary", ":all:", *(part for name in SOURCES for part in ("--no-binary", name))]
    constraints = ["--build-constraints", str(FOLDER / "common.lock"), "--require-hashes"]
    command = [
        "uv",
        "pip",
        "install",
        "--dry-run",
        "--target",
        str(tmp_path),
        *platform,
        *built,
        *constraints,
    ]
    # a data command that ran in this process before has put uv offline (toolkit/data/engine/juicer.py)
    online = {name: value for name, value in os.environ.items() if name != "UV_OFFLINE"}
    done = subprocess.run([*command, *locks], capture_output=True, text=True, check=False, env=online)
    if re.search("error sending request|dns error|failed to fetch", done.stderr, re.IGNORECASE):
        pytest.skip("no index of packages answers")
    assert done.returncode == 0, done.stderr
    would = {
        line.split()[1].partition("==")[0] for line in done.stderr.splitlines() if line.startswith(" + ")
    }
    assert would >= set(blocks(lock))


def test_every_direct_dependency_is_in_the_lock():
    wanted = re.findall(r"^([a-z][\w.-]*)", (FOLDER / "project.in").read_text(), flags=re.M)
    assert len(wanted) > 25
    assert not set(wanted) - set(blocks("common")) - {"torch", "torchvision"}


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
    ("lock", "handed_on"),
    [("torch-cpu", ["--find-links", "/wheels"]), ("torch-cuda", []), ("torch-cuda12", [])],
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


@pytest.mark.parametrize(
    ("says", "lock"),
    [
        ("580.65.06", "cuda"),
        ("590.10\n590.10", "cuda"),
        ("575.57.08", "cuda12"),
        ("525.60.13", "cuda12"),
        ("520.61.05", "cpu"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "cpu"),
        ("", "cpu"),
    ],
)
def test_set_up_takes_the_lock_that_the_driver_serves(tmp_path, says, lock):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
    program.chmod(0o755)
    command = ["make", "--no-print-directory", "--eval", "chosen:;@echo $(TORCH)", "chosen"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == lock
