"""All checks over one experiment of a work tree.

    python -m toolkit bundle validate --root . --experiment synth --rules embedded --output output/reports/validation.json

Every check runs, whatever the others found, and every finding is listed: in a table on the terminal and in validation.json.
"""

from collections.abc import Callable, Iterator
from typing import Any

from toolkit.bundle import answers, documents, layout, provenance, rows, training
from toolkit.bundle.entry import Entry
from toolkit.bundle.experiment import Absent, Outside
from toolkit.bundle.findings import ERROR, WARNING, Finding
from toolkit.errors import UserError

Check = Callable[[Entry], Iterator[Finding]]

CHECKS: dict[str, tuple[str, Check]] = {
    "S1": ("names, links and what stands at the top", layout.top),
    "S2": ("required files", layout.files),
    "D1": ("training rows, their images, the conversion", rows.valid),
    "D2": ("a synthesis step that changed captions", rows.synthesized),
    "T1": ("training logs against records and scale", training.logs),
    "M1": ("the merge's numeric proof", training.merge),
    "E1": ("one real answer to every question", answers.complete),
    "E2": ("answers that depend on the question", answers.degenerate),
    "E3": ("scores recomputed from the answers", answers.scores),
    "P1": ("hashes from download to answers", provenance.chain),
    "R1": ("readme and requirements", documents.readme),
}


def validate(entry: Entry) -> list[Finding]:
    """All findings, in the order of CHECKS, each once."""
    found: dict[Finding, None] = {}
    for identifier, (title, check) in CHECKS.items():
        findings = check(entry)
        try:
            for finding in findings:
                found[finding] = None
        except Absent as absent:
            # S2 speaks for every absent file, so that one file makes one finding.
            found[layout.missing(str(absent))] = None
        except Outside as outside:
            entry.unproved[identifier] = str(outside)
        except UserError as error:
            found[Finding(identifier, "", str(error), "mend or rebuild the file named")] = None
        except Exception as error:
            # A record of an unexpected shape must end in a finding, never in a traceback or in "valid".
            message = f"{title}: the check could not be finished ({type(error).__name__}: {error})"
            found[Finding(identifier, "", message, "rebuild the records; they are not what the toolkit writes")] = None
    return sorted(found, key=lambda finding: list(CHECKS).index(finding.id))


def document(entry: Entry, findings: list[Finding]) -> dict[str, Any]:
    """validation.json: what was checked, under which rules, and all findings."""
    try:
        scale, division = entry.scale.name, entry.division
    except Exception:  # a finding says why
        scale, division = None, None
    return {
        "experiment": entry.name,
        "rules": {"name": entry.rules.name, "version": entry.rules.version},
        "scale": scale,
        "division": division,
        "valid": not any(finding.severity == ERROR for finding in findings),
        "errors": sum(finding.severity == ERROR for finding in findings),
        "warnings": sum(finding.severity == WARNING for finding in findings),
        "checks": {
            identifier: {"title": title, "findings": sum(finding.id == identifier for finding in findings)}
            for identifier, (title, _) in CHECKS.items()
        },
        "findings": [finding.as_dict() for finding in findings],
    }
