"""R1: a reviewer finds the method, the run order and pinned requirements."""

import re
from collections.abc import Iterator

from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding

README, REQUIREMENTS = "solution/readme", "solution/requirements.txt"


def readme(entry: Entry) -> Iterator[Finding]:
    text = entry.path(README).read_text(encoding="utf-8")
    headings = {match.group(1).strip().lower() for match in re.finditer(r"^#+\s*(.+)$", text, flags=re.MULTILINE)}
    for section in entry.rules.readme_sections:
        if section not in headings:
            yield Finding("R1", README, f"there is no section {section!r}", f"write a heading '# {section.capitalize()}' and the section")
    for number, line in enumerate(entry.path(REQUIREMENTS).read_text(encoding="utf-8").splitlines(), start=1):
        requirement = line.split("#")[0].strip()
        if requirement and not re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?==[0-9][A-Za-z0-9.+!]*(\s*;.+)?", requirement):
            # not quoted: what stands there may be an address with a password
            yield Finding("R1", REQUIREMENTS, "the requirement is not pinned", "write name==version", line=number)
