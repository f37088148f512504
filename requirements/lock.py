"""Compile project.in into hash-pinned locks: what every machine installs, torch for CPU or CUDA, and uv
itself.

    make lock            (or: python requirements/lock.py [--upgrade] --find-links
    FOLDER_OR_URL_WITH_CPU_WHEELS)

Versions that are locked stay, but for those that project.in no longer allows; with --upgrade everything moves
to its newest.

One torch line cannot serve both kinds of machine under hash checking, so torch and the CUDA packages it pulls
in live in overlays; a test asserts that the two resolutions differ in nothing else.
"""

import argparse
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
PYTHON = "3.11"
LOCKS = ("common", "torch-cpu", "torch-cuda")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu/torch"


def blocks(lock: str) -> dict[str, str]:
    """Split a lock into `{package name: its requirement line with hashes}`."""
    return {re.match(r"[\w.-]+", block).group(): block for block in re.split(r"\n(?=[a-z])", lock.strip())}


def compile_lock(kept: str, *options: str) -> dict[str, str]:
    """Resolve project.in with uv, which prefers the versions that the text `kept` pins, and return its
    blocks."""
    command = [
        "uv",
        "pip",
        "compile",
        "--python-version",
        PYTHON,
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--quiet",
    ]
    command += ["--no-emit-index-url", "--no-emit-find-links", *options, str(HERE / "project.in")]
    with TemporaryDirectory() as folder:
        lock = Path(folder) / "lock"  # uv takes an existing output file for its preferences
        lock.write_text(kept)
        subprocess.run([*command, "--output-file", str(lock)], check=True, stdout=subprocess.DEVNULL)
        return blocks(lock.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--find-links", default=CPU_WHEELS, help="where the CPU wheel of torch lies (folder or page of links)"
    )
    parser.add_argument("--upgrade", action="store_true", help="move every package to its newest version")
    arguments = parser.parse_args()
    common, torch_cpu, torch_cuda = (
        "" if arguments.upgrade else (HERE / f"{name}.lock").read_text() for name in LOCKS
    )
    cpu = compile_lock(common + torch_cpu, "--find-links", arguments.find_links)
    cuda = compile_lock(common + torch_cuda)
    if "+cpu" not in cpu["torch"].splitlines()[0]:
        raise SystemExit("no CPU build of torch was found: pass --find-links")
    common = {name: block for name, block in cuda.items() if name in cpu and name != "torch"}
    differing = [name for name in common if cpu[name] != common[name]]
    if differing:
        raise SystemExit(f"the CPU and CUDA resolutions disagree on {', '.join(differing)}")
    locks = {
        "common": common,
        "torch-cpu": {"torch": cpu["torch"]},
        "torch-cuda": {n: b for n, b in cuda.items() if n not in common},
    }
    locks["uv"] = {"uv": common["uv"]}  # what installs the others
    for name, lock in locks.items():
        (HERE / f"{name}.lock").write_text("\n".join(lock[key] for key in sorted(lock)) + "\n")


if __name__ == "__main__":
    main()
