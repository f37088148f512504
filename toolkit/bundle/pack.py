"""submit.zip: the kit's tree, the same bytes for the same files.

    python -m toolkit bundle submit --root . --experiment synth --rules embedded --output submit.zip

Only a valid entry is packed, and the archive gets its name only after it was opened again and compared with
the files.
"""

import shutil
import zipfile
from pathlib import Path
from typing import Any

from toolkit.bundle.checks import layout
from toolkit.bundle.entry import Entry
from toolkit.bundle.zip import contents
from toolkit.bundle.zip.archive import Archive
from toolkit.bundle.zip.packed import VALIDATION
from toolkit.errors import UserError
from toolkit.files import atomic

DATE = (1980, 1, 1, 0, 0, 0)  # the oldest a zip archive can hold
MODE = 0o100644  # a regular file, readable by all
LEVEL = 6
CHUNK = 1 << 20


def pack(entry: Entry, document: dict[str, Any], output: Path) -> int:
    """Write the archive of `entry` and check it; return the number of members.

    document: the entry's validation, just made. UserError when validation.json in the tree says anything
    else, or the archive differs from the files.
    """
    if not entry.exists(VALIDATION) or entry.json(VALIDATION) != document:
        raise UserError(
            f"{entry.root / VALIDATION} is missing or older than the entry: run `python -m toolkit bundle "
            "validate` again"
        )
    members = entry.members()
    with atomic(output) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
            for name in members:
                member = zipfile.ZipInfo(name, DATE)
                member.create_system = 3  # Unix, so that the mode counts; the default depends on the machine
                member.external_attr = MODE << 16
                member.compress_type = zipfile.ZIP_DEFLATED
                # lets zipfile choose the zip64 form beyond 2 GiB
                member.file_size = entry.path(name).stat().st_size
                with entry.path(name).open("rb") as source, archive.open(member, "w") as target:
                    shutil.copyfileobj(source, target, CHUNK)
        recheck(entry, temporary, members)
    return len(members)


def recheck(entry: Entry, archive_path: Path, members: list[str]) -> None:
    """Open an archive as `verify` does and compare it with the work tree: names, SHA-256 of each member.
    UserError lists what differs."""
    with Archive(archive_path) as archive:
        archive.scan()
        problems = (
            []
            if list(archive.members) == members
            else [f"its members are not the {len(members)} expected files"]
        )
        different = [
            name
            for name, digest in archive.digests.items()
            if name in members and digest != entry.sha256(name)
        ]
        problems += [f"{name} is not the file in the work tree" for name in different]
        if not problems and not archive.findings:
            contents.inspect(archive, entry.path)
        findings = [
            *archive.findings,
            *layout.names(archive.members, entry.rules),
            *layout.required(archive.members, entry),
        ]
        problems += [f"{finding.file}: {finding.message}" for finding in findings]
    if problems:
        raise UserError(
            "\n".join(
                [
                    "the archive is wrong and was deleted, repair this and pack again:",
                    *(f"  - {problem}" for problem in problems),
                ]
            )
        )
