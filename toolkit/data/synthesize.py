"""One experiment's data: quarantine what cannot be read, run the recipe, account for every row.

    python -m toolkit data synthesize --recipe solution/recipes/recaption.yaml --samples input/world-seed/mgm_pretrain_stage_1.jsonl \\
        --images input/world-seed --model clip=input/world-clip --model captioner=input/world-captioner --processes 2 \\
        --output processed_data.jsonl --removed removed.jsonl --record run.json

Every row that is read is either kept or in `removed.jsonl`, with the operator that removed it, its statistic and the limits. Kept rows stay
in the seed's order, their paths relative to the folder of images. The bytes written do not depend on the number of processes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data import juicer, recipe
from toolkit.data.samples import caption_of, inspect_images, read_lines, row_problem
from toolkit.errors import UserError
from toolkit.files import sha256, write_jsonl
from toolkit.record import relative, write_record


@dataclass
class Seed:
    """What was read: valid rows and their line numbers by id, the lines set aside, a digest of all images that were opened."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    aside: list[dict[str, Any]] = field(default_factory=list)
    images_sha256: str = ""


def synthesize(
    recipe_path: Path,
    samples: Path,
    images: Path,
    models: Mapping[str, Path],
    processes: int,
    output: Path,
    removed: Path,
    record: Path,
) -> dict[str, Any]:
    """Write `output`, `removed` and `record`; return the counts of the record.

    UserError for a recipe with problems, a failing operator, no valid row, or a recipe that removes every row.
    """
    if processes < 1:
        raise UserError(f"--processes is {processes}, it must be at least 1")
    for name, folder in models.items():
        if not folder.is_dir():
            raise UserError(f"--model {name}={folder}: there is no such folder")
    with juicer.offline():
        chosen = recipe.load(recipe_path, models)
        seed = read_seed(samples, images, processes)
        if not seed.rows:
            reasons = [f"line {entry['line']}: {entry['reason']}" for entry in seed.aside] or ["it is empty"]
            raise UserError(f"{samples} has no row that can be used with {images}: {reasons[0]}")
        absolute = [
            {"id": row_id, "text": row["text"], "images": [str((images / row["images"][0]).absolute())]}
            for row_id, row in seed.rows.items()
        ]
        outcome = juicer.run(chosen.process, absolute, processes)
    unknown = sorted({row["id"] for row in outcome.rows} - seed.rows.keys())
    if unknown:
        raise UserError(f"{recipe_path} gives rows ids of its own ({unknown[0]}): every row must keep the id of its seed row")

    kept = []
    order = {row_id: position for position, row_id in enumerate(seed.rows)}
    for row in sorted(outcome.rows, key=lambda row: order[row["id"]]):  # stable: rows made from one seed row keep the recipe's order
        row = seed.rows[row["id"]] | row | {"images": [_relative_image(path, images) for path in row["images"]]}
        problem = row_problem(row)
        if problem:  # the recipe made it unfit for training, for example with an empty caption
            outcome.removed[row["id"]] = {"operator": "result", "reason": problem, "text": row["text"]}
        else:
            kept.append(row)
    kept_ids = {row["id"] for row in kept}
    gone = [
        {"line": seed.lines[row_id], "id": row_id, **why, "row": seed.rows[row_id]}
        for row_id, why in outcome.removed.items()
        if row_id not in kept_ids
    ]
    write_jsonl(removed, sorted(seed.aside + gone, key=lambda entry: entry["line"]))
    if not kept:
        raise UserError(f"{recipe_path} removes all {len(seed.rows)} valid rows of {samples}: see {removed} for the reasons")
    write_jsonl(output, kept)

    counts = {
        "read": len(seed.rows) + len(seed.aside),
        "kept": len(kept_ids),
        "removed": len(seed.aside) + len(gone),
        "rows_written": len(kept),
        "captions_changed": sum(caption_of(row["text"]) != caption_of(seed.rows[row["id"]]["text"]) for row in kept),
        "funnel": [
            {"operator": "read", "in": len(seed.rows) + len(seed.aside), "out": len(seed.rows)},
            *outcome.steps,
            {"operator": "result", "in": len(outcome.rows), "out": len(kept)},
        ],
    }
    write_record(
        record,
        "synthesize",
        inputs={"recipe": recipe_path, "samples": samples},
        outputs={"processed_data": output, "removed": removed},
        settings={
            "recipe": chosen.name,
            "process": chosen.written,
            "models": {name: {"path": relative(folder), "sha256": folder_sha256(folder)} for name, folder in chosen.models.items()},
            "images": {"path": relative(images), "sha256": seed.images_sha256},
        },
        results=counts,
        packages=("py-data-juicer", "datasets", "torch", "transformers", "pillow", "imagededup"),
        device=outcome.device,
    )
    return counts


def read_seed(samples: Path, images: Path, processes: int) -> Seed:
    """Read the rows and open every image; a line that cannot be trained on goes aside with its reason."""
    seed = Seed()
    for number, line, row, problem in read_lines(samples):
        problem = problem or row_problem(row)
        if not problem and row["id"] in seed.rows:
            problem = f"the id of line {seed.lines[row['id']]} again"
        if problem:
            row_id = row.get("id") if isinstance(row, dict) else None
            seed.aside.append({"line": number, "id": row_id, "operator": "read", "reason": problem, "row": line if row is None else row})
        else:
            seed.rows[row["id"]], seed.lines[row["id"]] = row, number
    digest = hashlib.sha256()
    inspected = inspect_images([images / row["images"][0] for row in seed.rows.values()], processes)
    for row_id, (problem, image_sha256) in zip(list(seed.rows), inspected, strict=True):
        digest.update(image_sha256.encode())
        if problem:
            row = seed.rows.pop(row_id)
            seed.aside.append(
                {"line": seed.lines[row_id], "id": row_id, "operator": "read", "reason": f"{problem}: {row['images'][0]}", "row": row}
            )
    seed.images_sha256 = digest.hexdigest()
    return seed


def folder_sha256(folder: Path) -> str:
    """One digest of a folder's files: their relative names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _relative_image(path: str, images: Path) -> str:
    try:
        return Path(path).relative_to(images.absolute()).as_posix()
    except ValueError:
        raise UserError(f"the recipe put an image at {path}, outside {images}: images must lie inside that folder") from None
