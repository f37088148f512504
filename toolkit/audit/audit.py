"""What an entry that was made with the contest's kit shows: findings with the ids of `validate`, and the
figures of its models.

    python -m toolkit bundle audit submit.zip another/folder --references eval_stage_1 --html audit.html

Nothing of the entry is executed or loaded. Its files are judged against the kit's script and numbers, against
each other, and with `references` against the benchmarks' answers. An entry without findings is not proved:
only putting the questions to its weights again shows that they gave the answers.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from toolkit.audit import answers as answering
from toolkit.audit import log as logging
from toolkit.audit import rows as training_rows
from toolkit.audit import script as scripting
from toolkit.audit import weights
from toolkit.audit.answers import Answers
from toolkit.audit.submission import Submission
from toolkit.bundle.checks import secrets
from toolkit.bundle.checks.texts import texts
from toolkit.bundle.findings import ERROR, WARNING, Finding, named
from toolkit.bundle.validate import first
from toolkit.contest import ruleset
from toolkit.contest.ruleset import Rules
from toolkit.counted import counted
from toolkit.errors import UserError

RULES = "online_2024"
REQUIRED = (
    "solution/readme",
    "solution/requirements.txt",
    "output/train.sh",
)  # the kit's README, "submission"
LOGS = {"pretrain": ("pretrain.log",), "finetune": ("finetune.log", "finetuning.log")}
INSTRUCTIONS = (240_000, 12_000)  # rows of the kit's two instruction sets
NOTES = ("simulat", "for_testing", "fabricat")  # of the rules' markers those that no honest code needs
CODE = r".+\.(?:py|sh)"
Commands = dict[str, dict[str, str]]  # flags of a script's trainer, by stage


@dataclass
class Model:
    """Figures of one trained model; None where the entry does not show them."""

    name: str
    rows: int | None = None
    steps: dict[str, int] = field(default_factory=dict)
    gpus: int | None = None
    seconds: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    different: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Audit:
    """What was found in one entry. given: the answers of its models, to compare entries by."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    given: dict[str, list[Answers]] = field(default_factory=dict)

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def as_dict(self) -> dict:
        return {
            "entry": self.title,
            "errors": self.count(ERROR),
            "warnings": self.count(WARNING),
            "models": [asdict(model) for model in self.models],
            "findings": [finding.as_dict() for finding in self.findings],
        }


def audit(
    paths: list[Path], references: Path | None = None, seed: Path | None = None, base: Path | None = None
) -> list[Audit]:
    """One audit an entry, each also against the answers of those before it.

    references: folder with textvqa/ or mmbench/ or both, as the kit lays them out. seed: the seed's rows.
    base: folder of gemma-2b-it. UserError for references or a seed that are none, and for a single path that
    holds no entry; of several it is a finding.
    """
    rules, audits = ruleset.load(RULES), list[Audit]()
    if references:  # what is wrong with it is nobody's finding
        answering.assert_references(references)
    captions = training_rows.captions_of_the_seed(seed) if seed else None
    for path in paths:
        try:
            with tempfile.TemporaryDirectory() as scratch, Submission(path, Path(scratch)) as submission:
                audits.append(_entry(submission, rules, references, captions, base))
        except UserError as error:
            if len(paths) == 1:
                raise
            audits.append(Audit(str(path), [Finding("Z1", "", str(error), "ask for a folder or a zip")]))
        for earlier in audits[:-1]:
            _compare(audits[-1], earlier, rules)
    return audits


def _entry(
    submission: Submission,
    rules: Rules,
    references: Path | None,
    captions: dict[str, str] | None,
    base: Path | None,
) -> Audit:
    result = Audit(submission.title, list(submission.findings))

    def check(identifier: str, file: str, findings: Iterable[Finding]) -> None:
        try:
            result.findings += first(findings)
        except UserError as error:
            result.findings.append(Finding(identifier, file, str(error), "ask for a readable file"))
        except Exception as error:  # a stranger's file must end in a finding, never in a traceback
            message = f"cannot be judged ({type(error).__name__}: {error})"
            result.findings.append(Finding(identifier, file, message, "look at it by hand"))

    check("S2", "", _required(submission))
    check("Z9", "", weights.safe(submission))
    check("S4", "", _secrets(submission))
    check("E1", "", _notes(submission))
    commands: dict[str, Commands] = {}
    for name in submission.names(r"output/[^/]+\.sh"):
        check("T2", name, _script(submission, name, commands, rules))
    check("D2", "solution", training_rows.synthesized(submission, rules))
    counts: dict[str, int] = {}
    for name in submission.names(training_rows.PROCESSED):
        check("D1", name, _rows(submission, name, counts, rules, references, captions))
    for name in submission.models():
        model = Model(name, rows=next(iter(counts.values())) if len(counts) == 1 else None)
        result.models.append(model)
        check("T1", name, _logs(submission, model, commands, rules))
        check("S3", name, weights.whole(submission, name))
        if base:
            check("M1", name, weights.changed(submission, name, base))
        check("E1", name, _answers(submission, model, result, rules, references))
    for place, name in enumerate(list(result.given)):
        for other in list(result.given)[:place]:
            check("E2", name, _copies(result.given[name], result.given[other], other, rules))
    result.findings = list(dict.fromkeys(named(finding, submission.scratch) for finding in result.findings))
    return result


def _required(submission: Submission) -> Iterator[Finding]:
    """S2: what the kit's README lists."""
    if records := submission.names(r"output/processed_data/[^/]+/run\.json"):
        message = "has the records of this toolkit, which prove more than an audit sees"
        yield Finding("P1", records[0], message, "python -m toolkit bundle verify", severity=WARNING)
    remedy = "ask for a whole entry"
    for name in REQUIRED:
        if not submission.names(rf"{name}(?:\.(?:md|txt))?"):
            yield Finding("S2", name, "the file is missing", remedy)
    if not submission.models():
        yield Finding(
            "S2", "output", "there is neither a trained model's folder nor one with answers", remedy
        )


def _secrets(submission: Submission) -> Iterator[Finding]:
    """S4: keys and tokens, which whoever gets the entry could use."""
    for name in submission.sizes:
        hits = set[tuple[int, str]]()
        for part, number, block in texts(submission, name):
            hits.update(
                secrets.search(secrets.KEYS, number, block, bool(secrets.QUOTED.search(part or name)))
            )
        for line, kind in sorted(hits):
            remedy = "tell its owner, who has to revoke it"
            yield Finding("S4", name, f"holds {kind}", remedy, line=line or None)


def _notes(submission: Submission) -> Iterator[Finding]:
    """E1: code that speaks of simulated training or answers."""
    for name in submission.names(CODE):
        for number, line in enumerate(submission.text(name).splitlines(), start=1):
            if any(note in line.lower() for note in NOTES):
                message = f"speaks of simulation: {line.strip()}"
                remedy = "read what it does with the training or the answers"
                yield Finding("E1", name, message, remedy, line=number, severity=WARNING)
                break


def _script(
    submission: Submission, name: str, commands: dict[str, Commands], rules: Rules
) -> Iterator[Finding]:
    """T2 of a script, whose commands are remembered."""
    text = submission.text(name)
    commands[name] = scripting.commands(text)
    yield from scripting.unchanged(name, text)
    for stage, flags in commands[name].items():
        yield from scripting.numbers(name, stage, flags, rules)


def _rows(
    submission: Submission,
    name: str,
    counts: dict[str, int],
    rules: Rules,
    references: Path | None,
    captions: dict[str, str] | None,
) -> Iterator[Finding]:
    """D1, D2, D4 of a file of rows, whose number is remembered."""
    path = submission.path(name)
    rows = training_rows.read(name, path)
    counts[name] = rows.count
    yield from training_rows.valid(rows, rules)
    if captions:
        yield from training_rows.of_the_seed(rows, captions)
    if references:
        yield from training_rows.uncontaminated(rows, path, references)


def _logs(
    submission: Submission, model: Model, commands: dict[str, Commands], rules: Rules
) -> Iterator[Finding]:
    """S2, T1, T2 of a model's two logs."""
    folders = {"finetune": model.name, "pretrain": model.name.replace("-Finetune-", "-Pretrain-")}
    for stage in LOGS:
        folder = f"output/training_dirs/{folders[stage]}"
        names = [f"{folder}/{name}" for name in LOGS[stage] if f"{folder}/{name}" in submission.sizes]
        if not names:
            message = f"there is no {LOGS[stage][-1]}: nothing shows that this was trained"
            yield Finding("S2", folder, message, logging.REMEDY)
            continue
        log = logging.read(submission.text(names[0]), rules.markers)
        fixed = rules.fixed.pretrain if stage == "pretrain" else rules.fixed.finetune["closed"]
        rows = min(model.rows, rules.cap) if model.rows and stage == "pretrain" else None
        yield from logging.consistent(names[0], log, fixed, stage, rows)
        yield from scripting.numbers(names[0], stage, log.flags, rules)
        for script, by_stage in commands.items():
            yield from _agree(names[0], log, script, by_stage.get(stage, {}))
        known = [count // fixed.global_batch for count in INSTRUCTIONS]
        if stage == "finetune" and log.total and log.total not in known:
            message = (
                f"{counted(log.total, 'step')}, the kit's instruction sets make "
                f"{' or '.join(map(str, known))}"
            )
            yield Finding("T1", names[0], message, logging.REMEDY)
        _figures(model, stage, log)


def _agree(name: str, log: logging.Log, script: str, flags: dict[str, str]) -> Iterator[Finding]:
    """T2: the numbers of the command in the log are those of the script, where that states them plainly."""
    for flag, value in flags.items():
        logged = log.flags.get(flag)
        plain = "/" not in value and "$" not in value
        if logged is not None and plain and not scripting.same(logged, value):
            message = f"--{flag} of the logged command is {logged}, {script} has {value}"
            yield Finding("T2", name, message, "ask which script was run")


def _figures(model: Model, stage: str, log: logging.Log) -> None:
    closing = log.closing or {}
    model.steps[stage] = log.total or len(log.steps)
    model.gpus = log.gpus or model.gpus
    if isinstance(seconds := closing.get("train_runtime"), int | float):
        model.seconds = round((model.seconds or 0.0) + seconds, 1)
    if isinstance(loss := closing.get("train_loss"), int | float):
        model.losses[stage] = round(loss, 4)


def _answers(
    submission: Submission, model: Model, result: Audit, rules: Rules, references: Path | None
) -> Iterator[Finding]:
    """S2, E1, E2, E3 of a model's answers."""
    result.given[model.name] = []
    for answers in answering.read(submission, model.name):
        result.given[model.name].append(answers)
        texts = answers.texts()
        model.answers[answers.benchmark] = len(texts)
        model.different[answers.benchmark] = len({text.lower() for text in texts})
        yield from answering.complete(answers, rules)
        yield from answering.varied(answers, rules)
        if references and texts and (folder := references / answers.benchmark).is_dir():
            score = answering.score(answers, folder, submission.path(answers.file))
            model.scores[answers.benchmark] = round(score, 2)
    for name, predictions in answering.tables(submission, model.name):
        of = next((each for each in result.given[model.name] if each.benchmark == answering.ROTATED), None)
        yield from answering.uploaded(name, predictions, of)
    for benchmark in sorted(answering.QUESTIONS.keys() - model.answers.keys()):
        message = f"there are no answers to {benchmark}"
        yield Finding("S2", f"output/eval_results/{model.name}", message, answering.REMEDY)


def _copies(mine: list[Answers], others: list[Answers], name: str, rules: Rules) -> Iterator[Finding]:
    for answers in mine:
        for other in others:
            if other.benchmark == answers.benchmark:
                yield from answering.copied(answers, other, name, rules)


def _compare(later: Audit, earlier: Audit, rules: Rules) -> None:
    """E2 between entries: the finding goes to both, since nobody can tell who copied."""
    for name, mine in later.given.items():
        for other, theirs in earlier.given.items():
            later.findings += _copies(mine, theirs, f"{other} in {earlier.title}", rules)
            earlier.findings += _copies(theirs, mine, f"{name} in {later.title}", rules)
