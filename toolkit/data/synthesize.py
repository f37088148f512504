"""One experiment's data: quarantine what cannot be read, run the recipe, account for every row.

    python -m toolkit data synthesize --recipe solution/recipes/recaption.yaml --samples
    input/world-seed/mgm_pretrain_stage_1.jsonl \\
        --images input/world-seed --model clip=input/world-clip --model captioner=input/world-captioner
        --processes 2 \\
        --scores output/scores --output processed_data.jsonl --removed removed.jsonl --record run.json

Every row that is read is either kept or in `removed.jsonl`, with the operator that removed it, its statistic
and the limits. Kept rows stay in the seed's order, their paths relative to the folder of images. `score`
computes every statistic beforehand; `synthesize` asks for what is missing, so it may also be run alone. The
bytes written depend neither on that nor on the number of processes.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.contest.records import relative, write_record
from toolkit.data import recipe
from toolkit.data.engine import juicer
from toolkit.data.engine.pipeline import Outcome, Walk
from toolkit.data.engine.scores import Scores
from toolkit.data.engine.statistics import WalkRow
from toolkit.data.engine.workers import ray_ends
from toolkit.data.recipe import kinds
from toolkit.data.samples import HASH, SYNTHETIC, caption_of, read_lines, row_problem
from toolkit.errors import UserError
from toolkit.files import atomic, sha256, write_json, write_jsonl

STORE = "scores.sqlite"
NEW_IMAGES = "images"  # beside the store: images that operators made


class NothingLeft(UserError):
    """A recipe removed every row: the file of their reasons is written, nothing else is."""


@dataclass
class Seed:
    """What was read: line, number, text, absolute image path and its digest of each valid row, the lines
    quarantined, a digest of all images."""

    lines: list[str] = field(default_factory=list)
    numbers: "array[int]" = field(default_factory=lambda: array("Q"))
    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    images_sha256: str = ""

    def row(self, place: int) -> dict[str, Any]:
        return json.loads(self.lines[place])

    def add(self, number: int, line: str, text: str, image: str) -> None:
        self.numbers.append(number)
        self.lines.append(line)
        self.texts.append(text)
        self.images.append(image)

    def quarantine(self, number: int, row_id: Any, reason: str, row: Any) -> None:
        self.quarantined.append(
            {"line": number, "id": row_id, "operator": "read", "reason": reason, "row": row}
        )


@dataclass
class Run:
    """A recipe over a seed, with an open store. `place`: where the store and new images lie; executor:
    "local" or "ray"."""

    recipe_path: Path
    samples: Path
    images: Path
    models: Mapping[str, Path]
    processes: int
    executor: str
    place: Path

    def open(self) -> tuple[Walk, Seed, list[WalkRow]]:
        """The walk and the rows it starts from. UserError for a recipe with problems or a seed without a
        valid row."""
        if self.processes < 1:
            raise UserError(f"--processes is {self.processes}, it must be at least 1")
        for name, folder in self.models.items():
            if not folder.is_dir():
                raise UserError(f"--model {name}={folder}: there is no such folder")
        checked_recipe = recipe.load(self.recipe_path, self.models)
        scores = Scores(self.place / STORE)
        seed = read_seed(self.samples, self.images, scores, self.processes)
        if not seed.lines:
            reasons = [f"line {entry['line']}: {entry['reason']}" for entry in seed.quarantined] or [
                "it is empty"
            ]
            raise UserError(f"{self.samples} has no row that can be used with {self.images}: {reasons[0]}")
        new_images = (self.place / NEW_IMAGES).absolute()
        for step in checked_recipe.steps:
            if "save_dir" in recipe.signature(type(juicer.operator(step))):
                step.arguments["save_dir"] = str(new_images)
        seeds = enumerate(zip(seed.texts, seed.images, seed.digests, strict=True))
        rows = [WalkRow(place, text, image, digest) for place, (text, image, digest) in seeds]
        return Walk(checked_recipe, scores, new_images, self.processes, self.executor), seed, rows


def score(run: Run, output: Path) -> int:
    """Fill the store with all statistics of a recipe for the rows that it draws, by default all, and write
    `output`, what they are; return the number of rows."""
    with ray_ends(), juicer.offline():
        walk, seed, rows = run.open()
        served = walk.score(rows)
    scored = len(walk.outcome.rows)
    write_json(output, {"rows": scored, "images": seed.images_sha256, "statistics": served})
    return scored


def synthesize(run: Run, output: Path, removed: Path, record: Path) -> dict[str, Any]:
    """Write `output`, `removed` and `record`; return the counts of the record.

    UserError for a recipe with problems, a failing operator or no valid row; NothingLeft for a recipe that
    removes every row.
    """
    with ray_ends(), juicer.offline():
        walk, seed, rows = run.open()
        replaced = (output.parent / SYNTHETIC).absolute()
        if any(image.startswith(f"{replaced}{os.sep}") for image in seed.images):
            raise UserError(
                f"{replaced} would be replaced, and images of the seed lie there: choose another folder for "
                "--output"
            )
        outcome = walk.select(rows)
        try:
            row_counts = _write_rows(run, walk, seed, outcome, output, removed)
        except NothingLeft:
            for earlier in (output, record):  # of another run: they would not go with what was removed now
                earlier.unlink(missing_ok=True)
            raise
    checked_recipe = walk.recipe
    counts = {
        **row_counts,
        "funnel": [
            {
                "operator": "read",
                "in": row_counts["read"],
                "out": row_counts["read"] - row_counts["quarantined"],
            },
            *outcome.steps,
            {"operator": "result", "in": len(outcome.rows), "out": row_counts["rows_written"]},
        ],
    }
    write_record(
        record,
        "synthesize",
        inputs={"recipe": run.recipe_path, "samples": run.samples}
        | {path.as_posix(): path for path in checked_recipe.files},
        outputs={"processed_data": output, "removed": removed},
        settings={
            "recipe": checked_recipe.name,
            "process": checked_recipe.raw_steps,
            "models": {
                name: {"path": relative(folder), "sha256": walk.scores.folder(folder)}
                for name, folder in checked_recipe.models.items()
            },
            "images": {"path": relative(run.images), "sha256": seed.images_sha256},
        },
        results=counts,
        packages=(
            *("py-data-juicer", "torch", "transformers", "pillow", "imagededup"),
            *(package for step in checked_recipe.steps for package in kinds.extra_packages(step)),
        ),
        device=walk.device,
    )
    return counts


def _write_rows(
    run: Run, walk: Walk, seed: Seed, outcome: Outcome, output: Path, removed: Path
) -> dict[str, Any]:
    """Write kept and removed rows and the images that operators made; return the counts."""
    kept_places: set[int] = set()
    removed_by: Counter[str] = Counter()
    changed = 0
    new_images = output.parent / SYNTHETIC
    old, generated = (f"{folder.absolute()}{os.sep}" for folder in (run.images, walk.images))
    for path in new_images.glob("*"):  # of an earlier run: only what has the name that its bytes give it
        if path.is_file() and path.stem == sha256(path)[:HASH]:
            path.unlink()

    def rows_kept() -> Iterator[dict[str, Any]]:
        nonlocal changed
        # stable: rows made from one seed row keep the recipe's order
        for row in sorted(outcome.rows, key=lambda row: row.seed):
            original = seed.row(row.seed)
            finished = original | {"text": row.text}
            problem = row_problem(finished)
            if problem:  # the recipe made it unfit for training, for example with an empty caption
                outcome.removed.setdefault(
                    row.seed, {"operator": "result", "reason": problem, "text": row.text}
                )
                continue
            kept_places.add(row.seed)
            changed += caption_of(row.text) != caption_of(original["text"])
            yield finished | {"images": [_image_name(row.image, old, generated, new_images)]}

    def rows_removed() -> Iterator[dict[str, Any]]:
        quarantined = iter([*seed.quarantined, None])
        next_quarantined = next(quarantined)
        for place, number in enumerate(seed.numbers):
            while next_quarantined and next_quarantined["line"] < number:
                removed_by["read"] += 1
                yield next_quarantined
                next_quarantined = next(quarantined)
            if place in kept_places:
                continue
            reason = outcome.removed[place]
            if "of" in reason:
                reason = reason | {"of": seed.row(reason["of"])["id"]}
            original = seed.row(place)
            removed_by[reason["operator"]] += 1
            yield {"line": number, "id": original["id"], **reason, "row": original}
        while next_quarantined:
            removed_by["read"] += 1
            yield next_quarantined
            next_quarantined = next(quarantined)

    with atomic(output) as temporary:
        rows_written = write_jsonl(temporary, rows_kept())
        lines_removed = write_jsonl(removed, rows_removed())
        if not rows_written:
            raise NothingLeft(
                f"{run.recipe_path} removes all {len(seed.lines)} valid rows of {run.samples}: see {removed} "
                "for the reasons"
            )
    return {
        "read": len(seed.lines) + len(seed.quarantined),
        "kept": len(kept_places),
        "removed": lines_removed - len(seed.quarantined),
        "quarantined": len(seed.quarantined),
        "rows_written": rows_written,
        "captions_changed": changed,
        "removed_by": dict(sorted(removed_by.items())),
    }


def read_seed(samples: Path, images: Path, scores: Scores, processes: int) -> Seed:
    """Read the rows and every image; a line that cannot be trained on is quarantined with its reason."""
    read = _read_rows(samples, f"{images.absolute()}{os.sep}")
    results = scores.images(read.images, processes)
    seed = Seed(quarantined=read.quarantined)
    digest = hashlib.sha256()
    for number, line, text, path in zip(read.numbers, read.lines, read.texts, read.images, strict=True):
        problem, image_digest = results[path]
        digest.update(image_digest.hex().encode())
        if problem:
            row = json.loads(line)
            seed.quarantine(number, row["id"], f"{problem}: {row['images'][0]}", row)
        else:
            seed.add(number, line, text, path)
            seed.digests.append(image_digest)
    seed.quarantined.sort(key=lambda entry: entry["line"])
    seed.images_sha256 = digest.hexdigest()
    return seed


def _read_rows(samples: Path, folder: str) -> Seed:
    """The rows whose images are not yet known. folder: of the images, with the separator at its end."""
    seed = Seed()
    first: dict[str, int] = {}
    for number, line, row, problem in read_lines(samples):
        problem = problem or row_problem(row)
        if not problem and row["id"] in first:
            problem = f"the id of line {first[row['id']]} again"
        if problem:
            row_id = row.get("id") if isinstance(row, dict) else None
            seed.quarantine(number, row_id, problem, line if row is None else row)
        else:
            first[row["id"]] = number
            seed.add(number, line, row["text"], f"{folder}{os.path.normpath(row['images'][0])}")
    return seed


def _image_name(path: str, images: str, generated: str, new_images: Path) -> str:
    """A row's path: relative to the folder of images, or `synthetic_images/…` for an image that an operator
    made, which is put there under its hash. images, generated: the folders, with the separator at their
    end."""
    if path.startswith(generated):
        target = new_images / f"{sha256(path)[:HASH]}{Path(path).suffix}"
        if not target.exists():
            with atomic(target) as temporary:
                shutil.copyfile(path, temporary)
        return f"{SYNTHETIC}/{target.name}"
    if not path.startswith(images):
        raise UserError(
            f"the recipe put an image at {path}, outside {images}: images must lie inside that folder"
        )
    return path.removeprefix(images)
