"""What an entry was made with, package by package: a CycloneDX 1.6 bill of materials of the locked
environment.

    python -m toolkit bundle sbom --output sbom.cdx.json

Made from the locks alone (requirements/), so the same locks give the same bytes: no time, and a serial number
derived from them. It lists what the locks allow to be installed, every package with the SHA-256 of each of
its files, one of which was taken. https://cyclonedx.org/docs/1.6/json/
"""

import hashlib
import re
import tomllib
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from toolkit.contest.records import locks
from toolkit.errors import UserError

ROOT = Path(__file__).parents[3]
# by "is a CPU build of PyTorch's own"
PAGES = {False: "https://pypi.org/simple/{}/", True: "https://download.pytorch.org/whl/cpu/{}/"}


def component(name: str, version: str, hashes: list[str]) -> dict[str, Any]:
    """A locked package; its files are those of one page of an index."""
    purl = f"pkg:pypi/{name}@{quote(version)}"
    files = {
        "type": "distribution",
        "url": PAGES[version.endswith("+cpu")].format(name),
        "comment": "every file of this version that may be installed",
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in sorted(hashes)],
    }
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "externalReferences": [files],
    }


def components(lock: str) -> list[dict[str, Any]]:
    """The packages of a lock's text; UserError names one without a pinned version or a hash."""
    entries = []
    for block in re.split(r"\n(?=\w)", lock.strip()):
        pinned = re.match(r"([\w.-]+)==(\S+)", block)
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
        if not pinned or not hashes:
            raise UserError(
                f"{block.splitlines()[0]!r} in a lock has no pinned version or no hash: run make lock"
            )
        entries.append(component(pinned[1], pinned[2], hashes))
    return entries


def sbom(root: Path = ROOT) -> dict[str, Any]:
    """The bill of materials of the repository at `root`, ready for JSON; UserError when a lock is missing or
    damaged."""
    folder = root / "requirements"
    try:
        texts = [path.read_text(encoding="utf-8") for path in locks(folder)]
        requirements = (folder / "project.in").read_text(encoding="utf-8")
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} does not exist: run this where the repository's requirements/ is complete"
        ) from None
    entries = sorted((entry for text in texts for entry in components(text)), key=lambda entry: entry["name"])
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()  # `lock` in the records
    reference = f"{project['name']}@{project['version']}"
    direct = set(re.findall(r"^[a-z][\w.-]*", requirements, re.MULTILINE))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "pre-build"}],
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": project["name"],
                "version": project["version"],
            },
            "properties": [{"name": "better-synth:lock:sha256", "value": digest}],
        },
        "components": entries,
        "dependencies": [
            {
                "ref": reference,
                "dependsOn": [entry["bom-ref"] for entry in entries if entry["name"] in direct],
            }
        ],
    }
