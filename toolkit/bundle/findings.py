"""What a check has to say, as a table on the terminal and as validation.json."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from toolkit.terminal import console, printable, shortened

ERROR, WARNING, EXCEPTION = "error", "warning", "exception"


@dataclass(frozen=True)
class Finding:
    """One problem: `id` names the check (S1 ... R1), `file` is relative to the root, `line` counts from 1,
    `remedy` says what to do.

    severity exception: an error or a warning that solution/exceptions.yaml covers, with its reason. Texts may
    quote a stranger's file: they are shortened, and nothing in them steers a terminal.
    """

    id: str
    file: str
    message: str
    remedy: str
    line: int | None = None
    severity: str = ERROR
    reason: str | None = None

    def __post_init__(self) -> None:
        for key in ("file", "message", "remedy", "reason"):
            text = getattr(self, key)
            if text is not None:
                text = shortened(text if key == "file" else " ".join(text.split()))
                object.__setattr__(self, key, printable(text))

    def as_dict(self) -> dict:
        return {key: value for key, value in asdict(self).items() if value is not None}


def named(finding: Finding, scratch: Path) -> Finding:
    """The finding with files called as in the entry: each folder in `scratch`, whose name tells nobody
    anything, is laid out as the entry is."""
    copy = re.compile(rf"{re.escape(str(scratch))}/[^/\s]+/")
    return replace(finding, file=copy.sub("", finding.file), message=copy.sub("", finding.message))


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == ERROR]


def show(findings: list[Finding], title: str) -> None:
    """Print all findings, errors first, then exceptions with their reasons."""
    title = printable(title)
    if not findings:
        console().print(f"{title}: no findings", markup=False)
        return
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    table.add_column("id")
    table.add_column("severity")
    table.add_column("where", overflow="fold")
    table.add_column("what", overflow="fold")
    table.add_column("remedy", overflow="fold")
    for finding in sorted(findings, key=lambda finding: (ERROR, EXCEPTION, WARNING).index(finding.severity)):
        place = finding.file if finding.line is None else f"{finding.file}:{finding.line}"
        remedy = f"excepted: {finding.reason}" if finding.reason else finding.remedy
        table.add_row(finding.id, finding.severity, *map(Text, (place, finding.message, remedy)))
    console().print(table)
