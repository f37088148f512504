"""Is a submit.zip whole, honest and within the rules? From the archive alone.

    python -m toolkit bundle verify submit.zip
    python -m toolkit bundle verify submit.zip --inputs input --deep --base input/world-gemma --json
    verify.json

1. The archive: every byte accounted for (`archive`), nothing in it that could run (`contents`). With a
   finding here, nothing else is read.
2. The rules are those that fit the scale and the files, whatever validation.json in the archive says; it has
   to say the same (V1).
3. All checks of `validate` on the members. Inputs that the toolkit itself draws are made anew; others may be
   given. A check whose inputs are not at hand is named as not finished, and what the archive alone can show
   is checked instead (`inside`).
4. With --deep the merge's arithmetic (`merged`), and some or all questions re-evaluated (`reproduced`).
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.bundle.checks import inside, rows
from toolkit.bundle.checks.answers import COMPARISON
from toolkit.bundle.findings import ERROR, EXCEPTION, WARNING, Finding, named
from toolkit.bundle.pack import VALIDATION
from toolkit.bundle.validate import document, first, validate
from toolkit.bundle.zip import contents
from toolkit.bundle.zip.archive import Archive
from toolkit.bundle.zip.packed import Inputs, Packed, experiment_of
from toolkit.contest import ruleset
from toolkit.contest.experiment import Absent, Outside
from toolkit.contest.ruleset import Rules
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import json_text, sha256
from toolkit.terminal import printable

if TYPE_CHECKING:
    from toolkit.bundle.checks.reproduced import Sample

BUILD = "pack a valid entry with `python -m toolkit bundle submit`"


@dataclass
class Report:
    """What was found. outside: files that only their hash is known of; unproved: checks that need one of
    them."""

    archive: str
    bytes: int
    sha256: str = ""
    members: int = 0
    signer: str | None = None
    experiment: str | None = None
    rules: dict[str, Any] | None = None
    rehearsal: bool = False
    scale: str | None = None
    division: str | None = None
    findings: list[Finding] = field(default_factory=list)
    outside: list[dict[str, str]] = field(default_factory=list)
    unproved: dict[str, str] = field(default_factory=dict)
    deep: list[str] = field(default_factory=list)
    score: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not any(finding.severity == ERROR for finding in self.findings)

    @property
    def excepted(self) -> bool:
        return any(finding.severity == EXCEPTION for finding in self.findings)

    def title(self) -> str:
        rules = (
            f"{self.experiment}, rules {self.rules['name']} version {self.rules['version']}, "
            if self.rules
            else ""
        )
        verdict = ("valid but for exceptions" if self.excepted else "valid") if self.valid else "NOT VALID"
        if self.rehearsal:
            verdict += ", a rehearsal and not an entry"
        return f"{self.archive}: {rules}{counted(self.members, 'file')}, {verdict}"

    def scores(self, entry: Packed, proved: set[str]) -> list[Finding]:
        """Remember the contest's scores, each with what they rest on; nothing is wrong with them that E3 has
        not said. proved: runs whose answers were given by their models once more."""
        table, baseline = entry.json(COMPARISON), entry.config.compare.baseline
        if baseline in proved:
            basis = "the baseline's answers re-evaluated as above"
        else:
            basis = "baseline not proved: its answers are packed and scored, its model was not asked"
        for name, row in table["score"].items():
            score = "none, the baseline has no right answer" if row["score"] is None else row["score"]
            self.score.append(f"contest score of {name}: {score}, {basis}")
        return []

    def remarks(self) -> list[str]:
        """What the findings do not say: what could not be proved, and what was."""
        lines = [
            f"{identifier} could not be finished without {file}" for identifier, file in self.unproved.items()
        ]
        if self.outside:
            lines.append(f"not in the bundle, known by hash: {counted(len(self.outside), 'file')}")
            lines += [f"  {item['sha256'][:16]} {item['path']} ({item['status']})" for item in self.outside]
        signed = [f"signed by {self.signer}"] if self.signer else []
        return signed + lines + self.deep + self.score

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {
            "valid": self.valid,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def verify(
    path: Path,
    inputs: Path | None = None,
    make: bool = True,
    deep: "Sample | None" = None,
    base: Path | None = None,
    retrain: tuple[str, ...] = (),
    steps: int | None = None,
    signers: Path | None = None,
) -> Report:
    """All findings about the archive at `path`; UserError if there is no such file.

    inputs: a folder of assets like the work tree's input/. make: draw the assets that the toolkit draws
    itself. deep: which questions are re-evaluated. base: the language model's folder, for `deep`.
    retrain: stages to train again, for so many `steps` (None: all). signers: see `signature.signer`.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: name the archive to verify")
    with Archive(path) as archive, tempfile.TemporaryDirectory() as folder:
        report = Report(path.name, archive.bytes, members=len(archive.members))
        scratch = Path(folder)
        if signers:
            _signed(report, path, signers)
        if not archive.findings:
            report.sha256 = sha256(path)
            archive.scan()
        if not archive.findings:
            files = Packed(
                archive,
                scratch / "copies",
                "",
                ruleset.load(ruleset.names()[0]),
                Inputs(None, scratch, make=False),
            )
            contents.inspect(archive, files.path)
        report.findings += archive.findings
        if report.valid:
            held = Inputs(inputs, scratch / "inputs/input", make)
            if (entry := _entry(report, archive, scratch, held, deep, base)) and report.valid:
                _retrain(report, entry, scratch, retrain, steps)
        report.findings = [named(finding, scratch) for finding in report.findings]
    return report


def _signed(report: Report, archive: Path, signers: Path) -> None:
    """V2, or whose key it was."""
    from toolkit.bundle import signature

    name = signature.signer(archive, signers)
    if isinstance(name, Finding):
        report.findings.append(name)
    else:
        report.signer = name


def _entry(
    report: Report, archive: Archive, scratch: Path, inputs: Inputs, deep: "Sample | None", base: Path | None
) -> Packed | None:
    """Everything about the entry in a sound archive; the entry, where it is known which it is."""
    try:
        name, size = experiment_of(archive)
        rules = _rules(lambda rules: Packed(archive, scratch / "copies", name, rules, inputs), size)
    except UserError as error:
        report.findings.append(Finding("V1", report.archive, str(error), BUILD))
        return None
    entry = Packed(archive, scratch / "copies", name, rules, inputs)
    report.experiment, report.rules = name, {"name": rules.name, "version": rules.version}
    report.rehearsal = rules.rehearsal
    findings = validate(entry)
    validation = document(entry, findings)
    report.scale, report.division = validation["scale"], validation["division"]
    report.findings += findings
    for run in (entry, *entry.compared_with):
        for identifier in run.unproved:
            for check in inside.CHECKS.get(identifier, []):
                report.findings += _guarded(identifier, check.__doc__ or identifier, check, run)
    # else it may be long
    if not any(finding.id in ("D1", "D2", "D3") and finding.severity != WARNING for finding in findings):
        report.findings += _guarded("D4", rows.compared_again.__doc__ or "D4", rows.compared_again, entry)
    report.findings += _guarded("V1", "validation.json", lambda entry: _agrees(entry, validation), entry)
    _models(report, entry, scratch, deep, base)
    report.findings = list(dict.fromkeys(report.findings))
    for run in reversed((entry, *entry.compared_with)):
        report.unproved |= run.unproved
    report.outside = _outside(entry)
    return entry


def _retrain(
    report: Report, entry: Packed, scratch: Path, stages: tuple[str, ...], steps: int | None
) -> None:
    """T3 for a valid entry."""
    for stage in stages:
        from toolkit.bundle.checks.retrained import retrained

        folder = scratch / f"retrained-{stage}"
        folder.mkdir()
        report.findings += _guarded(
            "T3",
            f"{stage} trained again",
            partial(retrained, stage=stage, steps=steps, folder=folder, remarks=report.deep),
            entry,
        )


def _models(report: Report, entry: Packed, scratch: Path, deep: "Sample | None", base: Path | None) -> None:
    """M2 and E4, which need weights: merges repeated where models are small, questions re-evaluated with
    `deep`; and what that says of the score."""
    # of an entry that is not valid anyway, nothing is merged: that takes as long as all before it
    small, proved = bool(entry.rules.adapter) and (deep is not None or report.valid), set()
    if small:
        from toolkit.bundle.checks.remerged import merged_again
    if deep:
        from toolkit.bundle.checks.merged import arithmetic
        from toolkit.bundle.checks.reproduced import reproduced

        report.findings += _guarded(
            "M2", "the merge's arithmetic", lambda entry: arithmetic(entry, base, report.deep), entry
        )
    for number, run in enumerate((entry, *entry.compared_with) if deep else (entry,)):
        folder, findings = scratch / f"merged-{number}" / run.finetune, []
        folder.mkdir(parents=True)
        if small:
            findings = _guarded("M2", "merged again", partial(merged_again, folder=folder), run)
        model = _packed_model(run) or next(
            (path.parent for path in folder.rglob("model-*.safetensors")), None
        )
        if deep and model:
            remarks = len(report.deep)
            findings += _guarded(
                "E4",
                "answers re-evaluated",
                partial(reproduced, model=model, sample=deep, remarks=report.deep),
                run,
            )
            if not findings and len(report.deep) > remarks and "E4" not in run.unproved:
                proved.add(run.name)
        elif deep:
            report.deep.append(f"E4: {run.name}: not proved, the bundle does not hold the weights")
        report.findings += findings
    if deep and not any(finding.id in ("D1", "D2", "D3", "D5") for finding in report.findings):
        report.findings += replay(report, entry, scratch / "replay", deep)
    report.findings += _guarded("E3", "score", lambda entry: report.scores(entry, proved), entry)


def replay(report: Report, entry: Packed, folder: Path, deep: "Sample") -> list[Finding]:
    """D6 for rows that are sound (D1 to D3) and a recipe that only computes (D5)."""
    from toolkit.bundle.checks.replayed import replayed

    folder.mkdir()
    return _guarded("D6", "the recipe", lambda run: replayed(run, folder, deep.seed, report.deep), entry)


def _packed_model(run: Packed) -> Path | None:
    """A folder with the merged model that the archive holds; None, too, where its record is not one, which
    other checks say."""
    try:
        checkpoint = run.record("merge").results["checkpoint"]
    except (UserError, Outside, Absent, KeyError):
        return None
    names = run.names(f"{run.finetune}/*" if checkpoint == "." else f"{run.finetune}/{checkpoint}/*")
    if not any(name.endswith(".safetensors") and "adapter" not in name for name in names):
        return None
    copies = [run.path(name) for name in names]
    return copies[0].parent


def _guarded(
    identifier: str, title: str, check: Callable[[Packed], Iterable[Finding]], entry: Packed
) -> list[Finding]:
    """A check's findings; a check that cannot be finished is a finding."""
    findings = []
    try:
        for finding in first(check(entry)):
            findings.append(finding)
    except Outside as outside:
        entry.unproved.setdefault(identifier, printable(outside))
    except Absent as absent:
        findings.append(Finding("S2", str(absent), "the file is missing", BUILD))
    except UserError as error:
        findings.append(Finding(identifier, "", str(error), BUILD))
    except Exception as error:
        # As in validate: a stranger's file must end in a finding, never in a traceback or in "valid".
        message = f"{title.splitlines()[0]}: could not be finished ({type(error).__name__}: {error})"
        findings.append(Finding(identifier, "", message, BUILD))
    return findings


def _rules(entry: Callable[[Rules], Packed], size: str) -> Rules:
    """The rules of this size and scale whose required files are there; of several the strictest. UserError if
    none fits."""
    fitting = []
    for rules in map(ruleset.load, ruleset.names()):
        if rules.size != size:
            continue
        packed = entry(rules)
        try:
            suits = packed.scale.name in rules.scales
            required = packed.required()
        except Exception:  # no readable record of the scale or division: the checks say so
            suits, required = True, []
        present = sum(name in packed.archive.members for name in required)
        fitting.append((suits, present / max(1, len(required)), len(required), rules.name, rules))
    if not fitting:
        raise UserError(f"no rules know models of the size {size}")
    return max(fitting)[-1]


def _agrees(entry: Packed, recomputed: dict[str, Any]) -> Iterator[Finding]:
    """V1: validation.json says what is found here, and that is "valid"."""
    recorded = entry.json(VALIDATION)
    if not isinstance(recorded, dict) or recorded.get("valid") is not True:
        yield Finding("V1", VALIDATION, "does not say that the entry is valid", BUILD)
        return
    if entry.path(VALIDATION).read_bytes() != json_text(recorded).encode():
        yield Finding("V1", VALIDATION, "is not as the toolkit writes it", BUILD)
    keys = set(recomputed) | set(recorded)
    if any(
        run.unproved for run in (entry, *entry.compared_with)
    ):  # a warning of a check that cannot be repeated here
        keys -= {"findings", "warnings", "checks"}
    if differing := sorted(key for key in keys if recorded.get(key) != recomputed.get(key)):
        message = f"says something else than is found here: {', '.join(differing)}"
        yield Finding("V1", VALIDATION, message, BUILD)


def _outside(entry: Packed) -> list[dict[str, str]]:
    """Files that a record names by hash and that are not in the archive, each once, with the record and
    whether its asset is at hand."""
    listed: dict[str, dict[str, str]] = {}
    for stage, file in entry.record_files.items():
        try:
            record = entry.record(stage)
        except Exception:  # a finding says why
            continue
        for item in [*record.inputs.values(), *record.outputs.values()]:
            if item.path not in entry.archive.members:
                at_hand = item.path.startswith("input/") and not entry.outside(item.path)
                status = "compared with the asset" if at_hand else "not at hand"
                about = {"path": item.path, "sha256": item.sha256, "named_by": file, "status": status}
                listed.setdefault(item.path, {key: printable(value) for key, value in about.items()})
    return list(listed.values())
