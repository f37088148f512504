"""A page to look through a data set: what each operator let through, captions before and after, filters.
Works offline, from one folder.

The rows stand in the page as JSON and reach it as text alone (gallery.html); its policy lets no other script
run and nothing be loaded but the pictures beside it: small copies of all images, loaded as they come into
view.
"""

import hashlib
import html
import json
import os
import random
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.benchmarks import BENCHMARKS
from toolkit.contest.records import read_record
from toolkit.counted import counted
from toolkit.data.analysis.charts import CAPTIONS
from toolkit.data.analysis.rows import Header, Rows, read_headers
from toolkit.data.analysis.shape import Statistics
from toolkit.data.samples import caption_of, image_file, read_lines, row_problem
from toolkit.errors import UserError
from toolkit.files import atomic, numbered_jsonl, write_text
from toolkit.images import Unreadable, opened, rgb
from toolkit.pages import script_source
from toolkit.processes import pool
from toolkit.progress import Progress

SEED = 1024
ROWS = 20_000  # in the page at most, some 10 MB
SIDE = 160  # pixels of a picture's longer side
QUALITY = 70
THUMBNAIL = re.compile(r'"thumbnail":"([0-9a-f]{20}\.jpg)"')  # in a page that was written here
TEMPLATE = Path(__file__).with_name("gallery.html")


def write_gallery(
    folder: Path,
    samples: Path,
    images: Path,
    rows: Rows,
    headers: Mapping[Path, Header],
    statistics: Statistics,
    removed: Path | None,
    steps: list[dict[str, Any]],
    seed_samples: Path | None,
    influence: Path | None,
    processes: int,
) -> None:
    """Write index.html and thumbnails/ to `folder`, where the figures are. `steps`: of `funnel`. UserError
    for a malformed `removed` or `influence`."""
    entries = kept_entries(rows, headers, read_seed(seed_samples) if seed_samples else {})
    influenced = add_influence(entries, influence) if influence else []
    if removed:
        entries += removed_entries(removed, images)
    total = len(entries)
    if total > ROWS:
        entries = [entries[place] for place in sorted(random.Random(SEED).sample(range(total), ROWS))]
    index = folder / "index.html"
    earlier = (
        set(THUMBNAIL.findall(index.read_text(encoding="utf-8", errors="replace")))
        if index.is_file()
        else set()
    )
    for name in earlier - write_pictures(entries, samples, images, folder / "thumbnails", processes):
        (folder / "thumbnails" / name).unlink(missing_ok=True)
    data = {
        "title": samples.parent.name + "/" + samples.name,
        "subtitle": f"{counted(statistics.rows, 'row', form=',')}, "
        f"{counted(statistics.images.files, 'image', form=',')}, "
        f"{statistics.text.words.mean:.2f} words a caption",
        "note": f"Shown are {len(entries):,} of {counted(total, 'row', form=',')}, drawn with seed {SEED}."
        if total > ROWS
        else "",
        "facts": facts(statistics),
        "figures": [[f"figures/{file}", text] for file, text in CAPTIONS.items()],
        "funnel": steps,
        "folders": [os.path.relpath(place, folder) for place in (images, samples.parent)],
        "statistics": list(dict.fromkeys(name for entry in entries for name in entry["statistics"])),
        **({"influence": influenced} if influence else {}),
        "rows": entries,
    }
    write_text(index, page(data))


def page(data: dict[str, Any]) -> str:
    """The template with its data, which cannot end the element it stands in: no `<` is left in it."""
    template = TEMPLATE.read_text(encoding="utf-8")
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {"script_hash": script_source(template), "title": html.escape(data["title"]), "data": text}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def read_seed(path: Path) -> dict[str, tuple[int, str]]:
    """Line and caption of every valid seed row, by id."""
    captions: dict[str, tuple[int, str]] = {}
    for number, _, row, problem in read_lines(path):
        if not (problem or row_problem(row)):
            captions.setdefault(row["id"], (number, caption_of(row["text"])))
    return captions


def kept_entries(
    rows: Rows, headers: Mapping[Path, Header], seed: Mapping[str, tuple[int, str]]
) -> list[dict[str, Any]]:
    """One entry a row, in their order."""
    entries = []
    for row_id, caption, image, file in zip(rows.ids, rows.captions, rows.images, rows.files, strict=True):
        line, before = seed.get(row_id, (None, None))
        entries.append(_entry("kept", row_id, line, before, caption, image, _sizes(headers.get(file))))
    return entries


def add_influence(entries: list[dict[str, Any]], path: Path) -> list[str]:
    """Give the kept rows that influence.jsonl knows by id and caption a statistic for each benchmark; return
    the statistics' names. UserError for another file, or one of other rows."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for number, line in numbered_jsonl(path):
        try:
            named = {
                f"influence on {BENCHMARKS[name].title}": line["influence"][name]
                for name in line["influence"]
            }
            values[line["id"], caption_of(line["caption"])] = named
            well_formed = all(_is_number(value) for value in named.values())
        except (KeyError, TypeError, AttributeError):
            well_formed = False
        if not well_formed:
            raise UserError(f"{path}, line {number} is not what `data influence` writes: run it again")
    known = [values.get((entry["id"], entry["after"]), {}) for entry in entries]
    for entry, of_row in zip(entries, known, strict=True):
        entry["statistics"] |= of_row
    if not any(known):
        raise UserError(f"{path} holds none of these rows: run `data influence` on the json made of them")
    return list(dict.fromkeys(name for of_row in known for name in of_row))


def removed_entries(removed: Path, images: Path) -> list[dict[str, Any]]:
    """One entry a line of removed.jsonl; what could not even be parsed is shown as it was read."""
    entries = []
    for number, removal in numbered_jsonl(removed):
        try:
            row, operator = removal["row"], removal["operator"]
            state = "quarantined" if operator == "read" else "removed"
            well_formed = isinstance(row, dict) and isinstance(row.get("text"), str)
            if well_formed:
                before = caption_of(row["text"])
            else:
                before = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
            after = caption_of(removal["text"]) if "text" in removal else None
            # a path that may leave the folder is not followed
            image = row["images"][0] if row_problem(row) is None else None
            statistics = {
                name: value
                for name, value in map(_single, removal.get("statistics", {}).items())
                if _is_number(value)
            }
            line, row_id, reason = removal["line"], removal["id"], removal["reason"]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{removed}, line {number} is not what `data synthesize` writes ({error!r}): run it again"
            ) from None
        size = read_headers([images / image]).get(images / image) if image else None
        entry = _entry(
            state,
            row_id if isinstance(row_id, str) else None,
            line,
            before,
            after,
            image,
            _sizes(size) | statistics,
        )
        step = operator if operator in ("read", "result") else str(removal.get("step", operator))
        entry |= {
            "operator": operator,
            "step": step,
            "reason": reason,
            "limits": removal.get("limits", {}),
            "of": removal.get("of"),
        }
        entries.append(entry)
    return entries


def _entry(
    state: str,
    row_id: str | None,
    line: int | None,
    before: str | None,
    after: str | None,
    image: str | None,
    statistics: dict[str, float],
) -> dict[str, Any]:
    caption = after if after is not None else before or ""
    counts = {"words": len(caption.split()), "characters": len(caption)}
    return {
        "id": row_id,
        "line": line,
        "state": state,
        "before": before,
        "after": after,
        "image": image,
        "statistics": counts | statistics,
    }


def _sizes(header: Header | None) -> dict[str, float]:
    return (
        {"width": header.width, "height": header.height, "KiB": round(header.bytes / 1024, 1)}
        if header
        else {}
    )


def _single(item: tuple[str, Any]) -> tuple[str, Any]:
    """Data-Juicer's statistics of images are lists of one value an image."""
    name, value = item
    return name, value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def funnel(path: Path, of: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The steps of run.json, each with the name that rows removed by it have as their `step`. UserError for
    another file, and where the record is not of the files in `of`, by its names of them."""
    record = read_record(path, "synthesize")
    for name, file in of.items():
        record.output(file, name)
    try:
        return [
            {"step": step["operator"] if step["operator"] in ("read", "result") else str(place), "limits": {}}
            | step
            for place, step in enumerate(record.results["funnel"])
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a record of `data synthesize` ({error!r} is missing): run it again"
        ) from None


def write_pictures(
    entries: list[dict[str, Any]], samples: Path, images: Path, folder: Path, processes: int
) -> set[str]:
    """Give every entry with a readable image a `thumbnail`, a JPEG in `folder`. Returns the files' names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = list(dict.fromkeys(entry["image"] for entry in entries if entry["image"] is not None))
    files = [image_file(path, images, samples) for path in paths]
    progress, thumbnails = Progress("making thumbnails", len(files)), {}
    with pool(processes) as workers:
        for path, name in zip(
            paths, workers.map(partial(picture, folder=folder), files, chunksize=64), strict=True
        ):
            thumbnails[path] = name
            progress.step()
    for entry in entries:
        if name := thumbnails.get(entry["image"]):
            entry["thumbnail"] = name
    return {name for name in thumbnails.values() if name}


def picture(file: Path, folder: Path) -> str | None:
    """Write a small copy named after the image's bytes; None for a file that cannot be read."""
    try:
        if not file.is_file():
            return None
        data = file.read_bytes()
        small = rgb(opened(data, draft=("RGB", (SIDE, SIDE))))  # a JPEG is decoded at a fraction of its size
    except (OSError, Unreadable):  # the row's reason says what is wrong
        return None
    small.thumbnail((SIDE, SIDE))
    name = f"{hashlib.sha256(data).hexdigest()[:20]}.jpg"
    with atomic(folder / name) as temporary:
        small.save(temporary, format="JPEG", quality=QUALITY)
    return name


def facts(statistics: Statistics) -> list[tuple[str, str, str]]:
    """The tiles: (label, value, note)."""
    images, text, diversity = statistics.images, statistics.text, statistics.diversity
    entries = [
        ("rows", f"{statistics.rows:,}", f"{statistics.problem_lines:,} other lines, {statistics.ids:,} ids"),
        (
            "words a caption",
            f"{text.words.mean:.2f}",
            f"median {text.words.median:g}, {text.words.minimum:g} to {text.words.maximum:g}",
        ),
        (
            "characters",
            f"{text.characters.mean:.1f}",
            f"{text.characters_with_markers.mean:.1f} with the two markers",
        ),
        (
            "distinct captions",
            f"{statistics.same_caption.distinct:,}",
            f"{counted(statistics.same_caption.rows, 'row', form=',')} share theirs",
        ),
        (
            "distinct images",
            f"{statistics.same_image.distinct:,}",
            f"{images.files - images.readable:,} of {counted(images.files, 'file', form=',')} unreadable",
        ),
    ]
    if images.short_side is not None:
        count = counted(images.of_commonest_short_side, "image", form=",")
        note = f"{images.commonest_short_side} px in {count}"
        entries.append(("short side", f"{images.short_side.median:g} px", note))
    scripts = [f"{rows:,} {name}" for name, rows in text.scripts.items()]
    entries.append(("script", next(iter(text.scripts)), ", ".join(scripts[:4])))
    if diversity:
        entries.append(
            (
                "vocabulary",
                f"{diversity.vocabulary:,}",
                f"{counted(diversity.words, 'word', form=',')}, {diversity.once:,} occur once",
            )
        )
        for name, estimate in diversity.measures.items():
            if name in ("distinct words of 1,000", "MTLD") and estimate.value is not None:
                note = (
                    f"{estimate.low:.1f} to {estimate.high:.1f} (95 %)"
                    if estimate.low is not None
                    else "too few rows for an interval"
                )
                entries.append((name, f"{estimate.value:.1f}", note))
    return entries
