"""X1: solution/exceptions.yaml, findings that an entry admits to, each with a reason. What it covers is
printed everywhere as an exception.

    - id: R1
      file: solution/requirements.txt
      reason: our own package has no release yet; it lies in solution/ours

Only what leaves every claim of the entry provable has exceptions: names (S1), traces of a machine (S5),
near-duplicates that the comparison lists (D4), readme and requirements (R1). A file that is missing, counts,
caps, steps, fixed numbers, logs, merge, answers, scores, hashes and records have none.
"""

from collections.abc import Collection
from dataclasses import replace

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.bundle.findings import EXCEPTION, WARNING, Finding
from toolkit.contest.experiment import Experiment
from toolkit.parse import YAML_BYTES, Malformed, yaml_value

FILE = "solution/exceptions.yaml"
EXCEPTABLE = ("S1", "S5", "D4", "R1")


class Exemption(BaseModel):
    """One element of the list."""

    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True, frozen=True)

    id: str = Field(description="of the check")
    file: str = Field(description="as the finding names it")
    reason: str = Field(min_length=1, description="for a reviewer")


def read(entry: Experiment) -> tuple[dict[int, Exemption], list[Finding]]:
    """What the file grants, by line, and what is wrong with its shape. No file grants nothing."""
    if not entry.exists(FILE):
        return {}, []
    granted: dict[int, Exemption] = {}
    findings = []
    remedy = "write a list of {id, file, reason}, or delete the file"
    if (size := entry.length(FILE)) > YAML_BYTES:
        return {}, [Finding("X1", FILE, f"has {size} bytes, at most {YAML_BYTES} are read", remedy)]
    with entry.open(FILE) as handle:
        text = handle.read()
    try:
        listed = yaml_value(text)
    except Malformed as error:
        return {}, [Finding("X1", FILE, f"is not YAML: {error}", remedy)]
    if not isinstance(listed, list):
        return {}, [Finding("X1", FILE, "is not a list", remedy)]
    # composed only for the lines: `yaml_value` has refused what would grow or nest without bound
    for node, element in zip(yaml.compose(text, Loader=yaml.CSafeLoader).value, listed, strict=True):
        line = node.start_mark.line + 1
        try:
            granted[line] = Exemption.model_validate(element)
        except ValidationError as error:
            names = [".".join(map(str, problem["loc"])) for problem in error.errors()]
            message = (
                f"{', '.join(names)} missing, empty or unknown" if any(names) else "is no {id, file, reason}"
            )
            findings.append(Finding("X1", FILE, message, remedy, line=line))
    return granted, findings


def listed(entry: Experiment) -> list[list[str]]:
    """Id, file and reason of each, for the report."""
    granted, unreadable = read(entry)
    rows = [[exemption.id, exemption.file, exemption.reason] for exemption in granted.values()]
    return rows + [
        ["not readable", f"{finding.file}:{finding.line}", finding.message] for finding in unreadable
    ]


def checked(entry: Experiment, known_ids: Collection[str]) -> tuple[dict[int, Exemption], list[Finding]]:
    """`read` without those that cannot be granted; they are findings. known_ids: of all checks."""
    granted, findings = read(entry)
    for line, exemption in list(granted.items()):
        if exemption.id in EXCEPTABLE:
            continue
        problem, remedy = f"{exemption.id} has no exceptions", "repair what the check found"
        if exemption.id not in known_ids:
            problem, remedy = "names an id that no check has", f"choose one of {', '.join(EXCEPTABLE)}"
        findings.append(Finding("X1", FILE, problem, remedy, line=line))
        del granted[line]
    return granted, findings


def apply(entry: Experiment, findings: list[Finding], known_ids: Collection[str]) -> list[Finding]:
    """The findings, those that are covered as exceptions, and those about the exceptions."""
    granted, refused = checked(entry, known_ids)
    used, marked = set(), []
    for finding in findings:
        line = next(
            (
                line
                for line, exemption in granted.items()
                if (exemption.id, exemption.file) == (finding.id, finding.file)
            ),
            None,
        )
        if line is not None:
            used.add(line)
            finding = replace(finding, severity=EXCEPTION, reason=granted[line].reason)
        marked.append(finding)
    for line in sorted(granted.keys() - used):
        refused.append(
            Finding("X1", FILE, "this exception covers no finding", "delete it", line=line, severity=WARNING)
        )
    return marked + refused
