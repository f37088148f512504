"""Make an environment equal to hash-pinned locks with uv: `python requirements/install.py ENVIRONMENT_PYTHON
LOCK...`.

uv does not read pip's configuration, so for the CPU's torch the `find-links` that pip is configured with (a
folder or page of wheels) is handed on; without one, that wheel is found on PyTorch's own public index. Not so
for CUDA's: to uv the CPU's wheel is the newer one of the same version. What packages without wheels are built
with comes from the locks too.
"""

import os
import subprocess
import sys

CPU_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"


def find_links() -> list[str]:
    """What pip's configuration and environment name as find-links."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], text=True, capture_output=True, check=True
    ).stdout
    links = []
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(".find-links"):
            links += value.strip("'\"").replace("\\n", " ").split()
    return list(dict.fromkeys(links))


def main(python: str, *locks: str) -> int:
    """Install what is missing, remove what is not in the locks; return uv's exit status."""
    links = (find_links() or [CPU_WHEELS]) if any("torch-cpu" in lock for lock in locks) else []
    options = [option for link in links for option in ("--find-links", link)]
    options += [option for lock in locks for option in ("--build-constraints", lock)]
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "sync",
        "--python",
        python,
        "--require-hashes",
        *options,
        *locks,
    ]
    return subprocess.run(command, env={**os.environ, "UV_NO_PROGRESS": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
