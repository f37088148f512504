"""All checks over one experiment of a work tree.

    python -m toolkit bundle validate --root . --experiment synth --rules embedded --output
    output/reports/validation.json

Every check runs, whatever the others found, and every finding is listed: in a table on the terminal and in
validation.json, whose shape is workflow/schemas/validation.schema.json.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from toolkit.benchmarks import CONTEST
from toolkit.bundle.checks import (
    active,
    answers,
    derived,
    documents,
    exceptions,
    fixed,
    layout,
    provenance,
    rows,
    secrets,
    training,
)
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import ERROR, EXCEPTION, WARNING, Finding
from toolkit.contest.experiment import Absent, Outside
from toolkit.errors import UserError
from toolkit.terminal import printable

Check = Callable[[Entry], Iterator[Finding]]

CHECKS: dict[str, tuple[str, Check]] = {
    "S1": ("names, links and what stands at the top", layout.top),
    "S2": ("required files", layout.files),
    "S3": ("weights and sizes", layout.weights),
    "S4": ("no keys, tokens or passwords", secrets.keys),
    "S5": ("no traces of a machine or a person", secrets.traces),
    "S6": ("nothing that acts when it is opened", active.passive),
    "D1": ("training rows, their images, the conversion", rows.valid),
    "D2": ("a synthesis step that changed captions", rows.synthesized),
    "D3": ("kept and removed rows are those read", rows.counts),
    "D4": ("no near-duplicates of evaluation items", rows.uncontaminated),
    "D5": ("recipes of operators that run nothing else", rows.allowed),
    "T1": ("training logs against records and scale", training.logs),
    "T2": ("fixed numbers, files of the kit, train.sh", fixed.unchanged),
    "M1": ("the merge's numeric proof", training.merge),
    "E1": ("one real answer to every question", answers.complete),
    "E2": ("answers that depend on the question", answers.degenerate),
    "E3": ("scores recomputed from the answers", answers.scores),
    "P1": ("hashes from download to answers", provenance.linked),
    "P2": ("records in the toolkit's own formatting", provenance.formatting),
    "P3": ("report, tables and configuration made again", derived.consistent),
    "R1": ("readme and requirements", documents.readme),
    "X1": (
        "exceptions with reasons that cover a finding",
        lambda entry: iter(exceptions.checked(entry, KNOWN)[1]),
    ),
}
KNOWN: tuple[str, ...] = tuple(CHECKS)
# of every other run that is compared: its accuracy counts as much as the entry's own
COMPARED: dict[str, Check] = {
    "D2": rows.compared,
    "T1": training.logs,
    "T2": fixed.numbers,
    "M1": training.merge,
    "E1": answers.complete,
    "E3": answers.scores,
    "P1": provenance.chain,
    "P2": provenance.formatting,
}
FILE = "output/reports/validation.json"  # where an entry keeps the document
LISTED = 100  # findings of one check


def validate(entry: Entry, strict: bool = False) -> list[Finding]:
    """All findings, in the order of CHECKS, each once; those that solution/exceptions.yaml covers are
    exceptions. strict: no warnings."""
    collected: dict[Finding, None] = {}
    unfinished: list[Finding] = []  # what a check would have said nobody knows, so nothing excepts it
    checks = [(identifier, check, entry) for identifier, (_, check) in CHECKS.items()]
    checks += [
        (identifier, check, run) for run in entry.compared_with for identifier, check in COMPARED.items()
    ]
    for identifier, check, run in checks:
        try:
            for finding in first(check(run)):
                collected[finding] = None
        except Absent as absent:
            # S2 speaks for every absent file, so that one file makes one finding.
            collected[layout.missing(str(absent))] = None
        except Outside as outside:
            run.unproved[identifier] = printable(outside)
        except UserError as error:
            remedy = "repair or rebuild the file named"
            unfinished.append(Finding(identifier, subject(run, identifier), str(error), remedy))
        except Exception as error:
            # A record of an unexpected shape must end in a finding, never in a traceback or in "valid".
            title = CHECKS[identifier][0]
            message = f"{title}: the check could not be finished ({type(error).__name__}: {error})"
            remedy = "rebuild the records; they are not what the toolkit writes"
            unfinished.append(Finding(identifier, subject(run, identifier), message, remedy))
    findings = list(dict.fromkeys([*exceptions.apply(entry, list(collected), KNOWN), *unfinished]))
    if strict:
        findings = [
            replace(finding, severity=ERROR) if finding.severity == WARNING else finding
            for finding in findings
        ]
    return sorted(findings, key=lambda finding: KNOWN.index(finding.id))


def first(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first LISTED findings, and a finding that says that there are more: a large file must not make as
    many lines."""
    for count, finding in enumerate(findings):
        if count == LISTED:
            message = f"and more: {LISTED} findings of this check are listed"
            yield Finding(finding.id, finding.file, message, "repair those first", line=finding.line)
            return
        yield finding


def subject(entry: Entry, identifier: str) -> str:
    """The file that a check reads first, for what is said about the check as a whole."""
    records = {"D": "data", "T": "pretrain", "M": "merge", "E": CONTEST[0], "P": "data"}
    return entry.record_files[records[identifier[0]]] if identifier[0] in records else "solution/readme"


def document(entry: Entry, findings: list[Finding]) -> dict[str, Any]:
    """validation.json: what was checked, under which rules, and all findings."""
    try:
        scale, division = entry.scale.name, entry.division
        files = {name: entry.sha256(name) for name in entry.members() if name != FILE}
    except Exception:  # a finding says why
        scale, division, files = None, None, {}
    return {
        "version": 2,
        "experiment": entry.name,
        "rules": {"name": entry.rules.name, "version": entry.rules.version},
        "scale": scale,
        "division": division,
        "valid": not any(finding.severity == ERROR for finding in findings),
        "errors": sum(finding.severity == ERROR for finding in findings),
        "warnings": sum(finding.severity == WARNING for finding in findings),
        "exceptions": sum(finding.severity == EXCEPTION for finding in findings),
        "checks": {
            identifier: {"title": title, "findings": sum(finding.id == identifier for finding in findings)}
            for identifier, (title, _) in CHECKS.items()
        },
        "findings": [finding.as_dict() for finding in findings],
        "files": files,
    }
