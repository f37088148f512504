"""Everything that would spoil a training run, found before it starts.

python -m toolkit data check --samples processed_data.jsonl --images input/world-seed --original stage_1.json --output check.json
"""

import os
from pathlib import Path

from toolkit.data.convert import read_questions
from toolkit.data.samples import image_file, inspect_images, read_lines, row_problem
from toolkit.files import write_json


def check(samples: Path, images: Path, original: Path, output: Path) -> list[str]:
    """Check every row, token, id and image; write counts and all problems to `output`; return the problems.

    An id may repeat (the contest allows repeated rows) but must be one of `original`, where its question comes from.
    """
    known = read_questions(original)
    problems: list[tuple[int, str]] = []
    users: dict[str, list[int]] = {}  # image path -> lines that name it
    rows = 0
    for rows, (number, _, row, problem) in enumerate(read_lines(samples), start=1):  # noqa: B007
        problem = problem or row_problem(row)
        if problem:
            problems.append((number, problem))
            continue
        if row["id"] not in known:
            problems.append((number, f"id {row['id']} is not in {original.name}"))
        users.setdefault(row["images"][0], []).append(number)
    inspected = inspect_images([image_file(path, images, samples) for path in users], os.cpu_count() or 1)
    for (path, numbers), (problem, _) in zip(users.items(), inspected, strict=True):
        if problem:
            problems.extend((number, f"{problem} ({path})") for number in numbers)
    found = [f"line {number}: {problem}" for number, problem in sorted(problems)]
    if rows == 0:
        found.append("no rows")
    write_json(output, {"rows": rows, "images": len(users), "problems": found})
    return found
