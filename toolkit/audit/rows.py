"""D1, D2, D4: the training rows of an entry made with the kit, and the recipe that made them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.audit.submission import Submission
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.bundle.findings import ERROR, WARNING, Finding
from toolkit.contest.ruleset import Rules
from toolkit.counted import counted
from toolkit.data.samples import SYNTHETIC, caption_of, read_lines, row_problem
from toolkit.errors import UserError
from toolkit.evaluate.contamination import contamination
from toolkit.parse import Malformed, yaml_value

PROCESSED = (
    r"output/processed_data/[^/]+(?<!_stats)\.jsonl"  # Data-Juicer keeps its statistics beside the rows
)
RECIPE = r"(?:solution|output)/(?:.+/)?[^/]+\.ya?ml"
CODE = r"solution/.+\.(?:py|sh|ipynb)"
README = r"solution/(?:.+/)?(?:readme[^/]*|[^/]+\.md)"
OPERATOR = re.compile(r"\b\w+_(?:mapper|filter|deduplicator|selector)\b")
REMEDY = "ask for the rows that were trained on and for the recipe that made them"


@dataclass
class Rows:
    """Rows of a file, and what was found in them. captions: by id, of rows that are sound."""

    file: str
    count: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=dict)
    texts: Counter[tuple[str, str]] = field(default_factory=Counter)


def read(name: str, path: Path) -> Rows:
    """The file `name` of processed rows, which lies at `path`."""
    rows = Rows(name)
    for number, _, row, problem in read_lines(path):
        rows.count += 1
        if problem := problem or row_problem(row):
            rows.problems.append((number, problem))
        else:
            caption = caption_of(row["text"])
            rows.captions.setdefault(str(row["id"]), []).append(caption)
            rows.texts[(row["images"][0], caption)] += 1
    return rows


def valid(rows: Rows, rules: Rules) -> Iterator[Finding]:
    """D1: sound rows, no more than the cap; what the contest allows but a rebuild stumbles over is a warning:
    rows that repeat, and the absolute paths that Data-Juicer writes."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for number, problem in rows.problems:
        kinds.setdefault(" ".join(problem.split()[:3]), []).append((number, problem))
    for kind, problems in kinds.items():
        line, first = problems[0]
        severity = WARNING if kind.startswith("absolute image") else ERROR
        message = f"{len(problems)} of {counted(rows.count, 'row')}: {first}"
        yield Finding("D1", rows.file, message, REMEDY, line=line, severity=severity)
    if rows.count > rules.cap:
        message = f"{rows.count} rows, at most {rules.cap} are trained on: the kit draws them by its own seed"
        yield Finding("D1", rows.file, message, REMEDY, severity=WARNING)
    if repeated := rows.texts.total() - len(rows.texts):
        message = f"{repeated} of {rows.count} rows repeat another's image and caption"
        yield Finding("D1", rows.file, message, "nothing to do: rows may be repeated", severity=WARNING)


def captions_of_the_seed(seed: Path) -> dict[str, str]:
    """The captions of the seed's rows by id. UserError for a file that holds none, or other lines."""
    captions: dict[str, str] = {}
    for number, _, row, problem in read_lines(seed):
        if problem := problem or row_problem(row):
            raise UserError(f"{seed}, line {number}: {problem}")
        captions[str(row["id"])] = caption_of(row["text"])
    if not captions:
        raise UserError(f"{seed} holds no row: name the seed's .jsonl")
    return captions


def of_the_seed(rows: Rows, captions: dict[str, str]) -> Iterator[Finding]:
    """D1, D2 against the seed's captions: every id is one of the seed's, and some captions are new."""
    if strangers := [name for name in rows.captions if name not in captions]:
        message = f"{len(strangers)} ids are none of the seed's, first {strangers[0]}"
        yield Finding("D1", rows.file, message, REMEDY)
    changed = sum(
        caption != captions.get(name) for name, several in rows.captions.items() for caption in several
    )
    if rows.captions and not changed:
        message = "every caption is the seed's: nothing was synthesized"
        yield Finding("D2", rows.file, message, REMEDY)


def uncontaminated(rows: Rows, samples: Path, references: Path) -> Iterator[Finding]:
    """D4: captions that hold a question with its answer, and images beside `samples` that are a question's.
    The seed's own images are not looked at."""
    evaluation = {}
    for benchmark in map(BENCHMARKS.__getitem__, CONTEST):
        if not (references / benchmark.name).is_dir():
            continue
        files = benchmark.official_files(references / benchmark.name, samples)
        if all(path.exists() for path in files.values()):
            evaluation[benchmark.name] = files
    result = contamination(samples, samples.parent / "absent", evaluation)
    for pair in result["found"]:
        message = f"the {pair['kind']} of {pair['training']} repeats {pair['evaluation']}"
        yield Finding("D4", rows.file, message, "take the score without the benchmark's repeated items")
    beside = {image: samples.parent / image for image, _ in rows.texts if image.startswith(f"{SYNTHETIC}/")}
    if beside:
        from toolkit.evaluate.look_alikes import look_alikes

        for pair in look_alikes(beside, evaluation, result["found"]):
            message = f"{pair.training} may show what {pair.evaluation} shows, cropped, mirrored or turned"
            yield Finding("D4", rows.file, message, "look at both images", severity=WARNING)


def synthesized(submission: Submission, rules: Rules) -> Iterator[Finding]:
    """D2: a recipe, or code of the solution, names an operator that makes captions or images."""
    operators = set(rules.synthesis) | {name.removeprefix("batched_") for name in rules.synthesis}
    recipes = submission.names(RECIPE)
    named: set[str] = set()
    for name in recipes:
        try:
            value = yaml_value(submission.text(name))
        except (Malformed, UserError):
            continue  # a recipe in another program's YAML is searched as text below
        process = value.get("process") if isinstance(value, dict) else None
        for step in process if isinstance(process, list) else []:
            named.update([step] if isinstance(step, str) else step if isinstance(step, dict) else [])
    for name in [*recipes, *submission.names(CODE)]:
        named.update(OPERATOR.findall(submission.text(name)))
    if named & operators:
        return
    described = set[str]().union(
        *(OPERATOR.findall(submission.text(name)) for name in submission.names(README))
    )
    if described & operators:
        message = f"no recipe and no code, only a description names {min(described & operators)}"
        yield Finding("D2", "solution", message, REMEDY, severity=WARNING)
    else:
        message = (
            "no recipe, code or description names an operator that makes captions or images: without a "
            "synthesis step an entry is invalid"
        )
        yield Finding("D2", "solution", message, REMEDY)
