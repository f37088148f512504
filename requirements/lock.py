"""Compile project.in into hash-pinned locks: what every machine installs, torch for the CPU, for CUDA 13 and
for CUDA 12, uv itself, what only some machines want (EXTRAS), which leaves the others as they are, what looks
for secrets and vulnerabilities (APART), and what lmms-eval adds to them or needs in another version.

    make lock            (or: python requirements/lock.py [--upgrade] --find-links
    FOLDER_OR_URL_WITH_CPU_WHEELS)

Versions that are locked stay, but for those that project.in no longer allows; with --upgrade everything moves
to its newest.

One torch line cannot serve all kinds of machine under hash checking, so torch, torchvision, which is built
for one torch, and the CUDA packages live in overlays; the resolutions may differ in nothing else.
"""

import argparse
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
PYTHON = "3.11"
LOCKS = ("common", "torch-cpu", "torch-cuda", "torch-cuda12")
OVERLAID = ("torch", "torchvision")
EXTRAS = {
    "slurm": (),
    "ocr": (),
    "models": ("--no-deps",),
    "tensorboard": (),
    "fuzz": (),
    "search": (),
    "axe": ("--no-deps",),
}  # options of each
APART = "security"  # in an environment of its own, like uv
CPU_WHEELS = "https://download.pytorch.org/whl/cpu/torch"


def blocks(lock: str) -> dict[str, str]:
    """Split a lock into `{package name: its requirement line with hashes}`."""
    return {re.match(r"[\w.-]+", block).group(): block for block in re.split(r"\n(?=[a-z])", lock.strip())}


def compile_lock(kept: str, *options: str, source: str = "project.in") -> dict[str, str]:
    """Resolve `source`, and further files among `options`, with uv, which prefers the versions that the text
    `kept` pins, and return the blocks."""
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
    command += ["--no-emit-index-url", "--no-emit-find-links", *options, str(HERE / source)]
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
    common, *overlays = ("" if arguments.upgrade else (HERE / f"{name}.lock").read_text() for name in LOCKS)
    options = (["--find-links", arguments.find_links], [], ["--overrides", str(HERE / "cuda12.in")])
    actual = {
        name: compile_lock(common + overlay, *chosen)
        for name, overlay, chosen in zip(LOCKS[1:], overlays, options, strict=True)
    }
    cpu, cuda = actual["torch-cpu"], actual["torch-cuda"]
    if "+cpu" not in cpu["torch"].splitlines()[0]:
        raise SystemExit("no CPU build of torch was found: pass --find-links")
    shared = {name: block for name, block in cuda.items() if name in cpu and name not in OVERLAID}
    for kind, lock in actual.items():
        if differing := [name for name in shared if lock.get(name, shared[name]) != shared[name]]:
            raise SystemExit(f"{kind} and torch-cuda disagree on {', '.join(differing)}")
    locks = {"common": shared} | {
        kind: {name: block for name, block in lock.items() if name not in shared}
        for kind, lock in actual.items()
    }
    before = HERE / "lmms.lock"
    own = blocks(before.read_text()) if before.is_file() and not arguments.upgrade else {}
    harness = compile_lock(
        "\n".join((cpu | own).values()), "--find-links", arguments.find_links, str(HERE / "lmms.in")
    )
    locks["lmms"] = {name: block for name, block in harness.items() if block != cpu.get(name)}
    locks["uv"] = {"uv": shared["uv"]}  # what installs the others
    with TemporaryDirectory() as folder:
        pins = Path(folder) / "pins"
        pins.write_text("\n".join(shared.values()) + "\n")
        for extra, chosen in {**EXTRAS, APART: ()}.items():
            before = HERE / f"{extra}.lock"
            kept = before.read_text() if before.is_file() and not arguments.upgrade else ""
            lock = compile_lock(kept, "--constraints", str(pins), *chosen, source=f"{extra}.in")
            locks[extra] = {
                name: block for name, block in lock.items() if name not in shared or extra == APART
            }
    for name, lock in locks.items():
        (HERE / f"{name}.lock").write_text("\n".join(lock[key] for key in sorted(lock)) + "\n")


if __name__ == "__main__":
    main()
