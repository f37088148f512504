"""R1: a reviewer finds the method, the run order and pinned requirements."""

import re
from collections.abc import Iterator

from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding

README, REQUIREMENTS = "solution/readme", "solution/requirements.txt"
LARGEST = 1 << 20  # bytes that are read


def readme(entry: Entry) -> Iterator[Finding]:
    if large := [name for name in (README, REQUIREMENTS) if entry.length(name) > LARGEST]:
        yield Finding("R1", large[0], f"has more than {LARGEST} bytes", "write what a reviewer can read")
        return
    lines = entry.path(README).read_text(encoding="utf-8").splitlines()
    headings = {line.lstrip("#").strip().lower() for line in lines if line.startswith("#")}
    for section in entry.rules.readme_sections:
        if section not in headings:
            yield Finding(
                "R1",
                README,
                f"there is no section {section!r}",
                f"write a heading '# {section.capitalize()}' and the section",
            )
    for number, line in enumerate(entry.path(REQUIREMENTS).read_text(encoding="utf-8").splitlines(), start=1):
        requirement = line.split("#")[0].strip()
        if requirement and not re.fullmatch(
            r"[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?==[0-9][A-Za-z0-9.+!]*(\s*;.+)?", requirement
        ):
            # not quoted: what stands there may be an address with a password
            yield Finding(
                "R1", REQUIREMENTS, "the requirement is not pinned", "write name==version", line=number
            )
