"""Compile project.in into hash-pinned locks: what every machine installs, torch for CPU or CUDA, and uv itself.

    make lock            (or: python requirements/lock.py --find-links FOLDER_OR_URL_WITH_CPU_WHEELS)

One torch line cannot serve both kinds of machine under hash checking, so torch and the CUDA packages it pulls in live in
overlays; a test asserts that the two resolutions differ in nothing else.
"""

import argparse
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = "3.11"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu/torch"


def blocks(lock: str) -> dict[str, str]:
    """Split a lock into `{package name: its requirement line with hashes}`."""
    return {re.match(r"[\w.-]+", block).group(): block for block in re.split(r"\n(?=[a-z])", lock.strip())}


def compile_lock(*options: str) -> dict[str, str]:
    """Resolve project.in with uv and return its blocks."""
    command = ["uv", "pip", "compile", "--python-version", PYTHON, "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command += ["--no-emit-index-url", "--no-emit-find-links", *options, str(HERE / "project.in")]
    return blocks(subprocess.run(command, check=True, text=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--find-links", default=CPU_WHEELS, help="where the CPU wheel of torch lies (folder or page of links)")
    cpu = compile_lock("--find-links", parser.parse_args().find_links)
    cuda = compile_lock()
    if "+cpu" not in cpu["torch"].splitlines()[0]:
        raise SystemExit("no CPU build of torch was found: pass --find-links")
    common = {name: block for name, block in cuda.items() if name in cpu and name != "torch"}
    differing = [name for name in common if cpu[name] != common[name]]
    if differing:
        raise SystemExit(f"the CPU and CUDA resolutions disagree on {', '.join(differing)}")
    locks = {"common": common, "torch-cpu": {"torch": cpu["torch"]}, "torch-cuda": {n: b for n, b in cuda.items() if n not in common}}
    locks["uv"] = {"uv": common["uv"]}  # what installs the others
    for name, lock in locks.items():
        (HERE / f"{name}.lock").write_text("\n".join(lock[key] for key in sorted(lock)) + "\n")


if __name__ == "__main__":
    main()
