"""What an entry was made with, package by package: a CycloneDX 1.6 bill of materials of the locked
environment.

    python -m toolkit bundle sbom --output sbom.cdx.json

Made from the locks alone (requirements/), so the same locks give the same bytes: no time, and a serial number
derived from them. It lists what the locks allow to be installed, every package with the SHA-256 of each of
its files, one of which was taken. https://cyclonedx.org/docs/1.6/json/

`--system` adds the Debian or Ubuntu packages of this machine: the image's own bill, which no entry carries.
"""

import hashlib
import platform
import re
import subprocess
import tomllib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from toolkit.contest.records import locks
from toolkit.errors import UserError

ROOT = Path(__file__).parents[3]
# by "is a CPU build of PyTorch's own"
PAGES = {False: "https://pypi.org/simple/{}/", True: "https://download.pytorch.org/whl/cpu/{}/"}

DPKG_LINE = "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n"


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


def system_packages() -> list[dict[str, Any]]:
    """The packages that dpkg has installed on this machine; UserError where there is no dpkg. Their purl is
    that of https://github.com/package-url/purl-spec, type deb."""
    command = ["dpkg-query", "--show", "--showformat", DPKG_LINE]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        release = platform.freedesktop_os_release()
    except (OSError, subprocess.CalledProcessError):
        raise UserError("dpkg lists no packages here: --system is for Debian and Ubuntu") from None
    distro = "-".join(filter(None, (release["ID"], release.get("VERSION_ID"))))
    entries = []
    for line in listed.splitlines():
        state, name, version, architecture = line.split("\t")
        if state == "installed":
            purl = (
                f"pkg:deb/{release['ID']}/{quote(name)}@{quote(version, safe=':')}"
                f"?arch={architecture}&distro={distro}"
            )
            entry = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
            entries.append(entry)
    return entries


def sbom(root: Path = ROOT, system: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The bill of materials of the repository at `root` and of `system`'s packages, ready for JSON; UserError
    when a lock is missing or damaged."""
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
    content = "".join([digest, *(entry["bom-ref"] for entry in system)])
    reference = f"{project['name']}@{project['version']}"
    direct = set(re.findall(r"^[a-z][\w.-]*", requirements, re.MULTILINE))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build" if system else "pre-build"}],
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": project["name"],
                "version": project["version"],
            },
            "properties": [{"name": "better-synth:lock:sha256", "value": digest}],
        },
        "components": [*entries, *system],
        "dependencies": [
            {
                "ref": reference,
                "dependsOn": [entry["bom-ref"] for entry in entries if entry["name"] in direct],
            }
        ],
    }
