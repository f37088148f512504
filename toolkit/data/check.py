"""Everything that would spoil a training run, found before it starts.

python -m toolkit data check --samples processed_data.jsonl --images input/world-seed --original stage_1.json
--output check.json
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.data.convert import read_questions
from toolkit.data.samples import (
    QUESTION_TOKENS,
    SYNTHETIC,
    image_file,
    inspect_images,
    question_problem,
    read_lines,
    row_problem,
)
from toolkit.files import write_json
from toolkit.processes import cores


@dataclass(frozen=True)
class Report:
    """What `check` found, each entry a line of the rows' file with its reason.

    problems: have to be repaired. set_aside: `data convert` leaves these rows out, since nothing of them
    would be trained on. outside: links that lead out of the folder of images: on another machine they lead
    nowhere, or to something else.
    """

    rows: int
    images: int
    problems: list[str]
    set_aside: list[str]
    outside: list[str]


def check(
    samples: Path, images: Path, original: Path, output: Path, question_tokens: int = QUESTION_TOKENS
) -> Report:
    """Check every row, token, id and image; write and return the report.

    An id may repeat (the contest allows repeated rows) but must be one of `original`, where its question
    comes from.
    """
    questions = read_questions(original)
    problems: list[tuple[int, str]] = []
    quarantined: list[str] = []
    users: dict[str, list[int]] = {}  # image path -> lines that name it
    rows = 0
    for rows, (number, _, row, problem) in enumerate(read_lines(samples), start=1):  # noqa: B007
        problem = problem or row_problem(row)
        if problem:
            problems.append((number, problem))
            continue
        if row["id"] not in questions:
            problems.append((number, f"id {row['id']} is not in {original.name}"))
        elif problem := question_problem(questions[row["id"]]["question"]["value"], question_tokens):
            quarantined.append(f"line {number}: {problem}")
        users.setdefault(row["images"][0], []).append(number)
    files = {path: image_file(path, images, samples) for path in users}
    inspected = inspect_images(list(files.values()), cores())
    outside = []
    for (path, numbers), (problem, _) in zip(users.items(), inspected, strict=True):
        if problem:
            problems.extend((number, f"{problem} ({path})") for number in numbers)
            continue
        folder = samples.parent if path.startswith(f"{SYNTHETIC}/") else images
        if not files[path].resolve().is_relative_to(folder.resolve()):
            outside.append(f"line {numbers[0]}: {path}")
    report = Report(
        rows,
        len(users),
        [f"line {number}: {problem}" for number, problem in sorted(problems)],
        quarantined,
        outside,
    )
    if len(quarantined) == rows:
        report.problems.append(f"no row remains: {quarantined[0]}" if quarantined else "no rows")
    write_json(output, asdict(report))
    return report
