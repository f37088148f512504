"""A seed set of any images with captions: `python -m toolkit data import SOURCE OUTPUT`.

SOURCE is one of these, and OUTPUT becomes a folder of samples.jsonl (Data-Juicer's rows), original.json
(their questions and answers, LLaVA's format), the images, and rejected.jsonl:

- JSON lines or a JSON list of objects: `image` (or file_name, image_path, path, images) and `caption` (or
  text, captions); LLaVA's `conversations`, of which the first question and answer are taken; Data-Juicer's
  rows
- COCO's captions: `images` and `annotations`
- WebDataset: a .tar (or .tar.gz, .tgz), or a folder of them; KEY.jpg beside KEY.txt or KEY.json
- a folder as Hugging Face's imagefolder: metadata.jsonl or metadata.csv, in it or in folders below it

An image is decoded in full before its row counts. Rows that training would not take are rejected, with the
reason.
"""

import csv
import json
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, count, groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from toolkit.assets.folder import copied
from toolkit.data.samples import (
    IMAGE_TOKEN,
    LLAVA_TOKEN,
    MOST_CHARACTERS,
    caption_of,
    inspect_images,
    question_problem,
    row_problem,
    text_of,
)
from toolkit.errors import UserError
from toolkit.files import LINE, numbered_jsonl, read_json, read_jsonl, write_jsonl, write_text
from toolkit.parse import Malformed, json_value

SAMPLES, ORIGINAL, REJECTED = "samples.jsonl", "original.json", "rejected.jsonl"
IMAGES = "images"
QUESTION = f"{LLAVA_TOKEN}\nWhat is in the photo?"  # one of the contest's eleven
IMAGE_KEYS = ("image", "images", "file_name", "image_path", "path")
CAPTION_KEYS = ("caption", "captions", "text")
NO_IMAGE = f"no image, or several: a row names one as {', '.join(IMAGE_KEYS)}"
ARCHIVES = (".tar", ".tar.gz", ".tgz")
LONGEST = 4 * MOST_CHARACTERS  # bytes of a text that may be trained on, in UTF-8
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Pair(NamedTuple):
    """An image with a caption. where: in the source, for people; image: its path there, "" for none; problem:
    why it is none."""

    where: str
    id: str
    image: str
    question: str
    caption: str
    problem: str = ""


class Source(NamedTuple):
    """Pairs, and the folder that their images' paths are relative to."""

    pairs: Iterable[Pair]
    images: Path


class Counts(NamedTuple):
    """renamed: rows whose id an earlier one of the source has, and which got another."""

    rows: int
    images: int
    rejected: int
    renamed: int = 0


def import_seed(source: Path, output: Path, images: Path | None = None, processes: int = 1) -> Counts:
    """Make the folder `output`, which does not exist yet, of `source`; it is there whole or not at all.

    images: folder that the paths of images in a file are relative to, by default the file's own. UserError
    for a source that cannot be read, or of which no row remains.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already: choose another folder, or move it away")
    if output.resolve() == Path.cwd():
        raise UserError(f"{output} is the current folder: name a new one")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an import that was killed
    partial.mkdir(parents=True)
    try:
        counts = _fill(partial, open_source(source, images, partial / "unpacked"), processes)
        if not counts.rows:
            first = next(read_jsonl(partial / REJECTED), None)
            reason = f", {first['where']}: {first['problem']}" if first else ""
            raise UserError(f"{source} has no row that can be trained on{reason}")
        shutil.rmtree(partial / "unpacked", ignore_errors=True)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return counts


def _fill(folder: Path, source: Source, processes: int) -> Counts:
    """Write rows, questions, images and what was rejected."""
    rejected: list[dict[str, str]] = []
    rows: list[tuple[Pair, dict[str, Any]]] = []
    ids: set[str] = set()
    for number, pair in enumerate(source.pairs, start=1):
        row_id = pair.id if pair.id and pair.id not in ids else _new_id(number, ids)
        ids.add(row_id)
        row = {"id": row_id, "text": text_of(pair.caption), "images": [pair.image]}
        problem = pair.problem or (NO_IMAGE if not pair.image else row_problem(row))
        problem = problem or question_problem(pair.question)
        if problem:
            rejected.append({"where": pair.where, "problem": problem})
        else:
            rows.append((pair, row))
    paths = list(dict.fromkeys(pair.image for pair, _ in rows))
    looked = zip(paths, inspect_images([source.images / path for path in paths], processes), strict=True)
    problems = {path: problem for path, (problem, _) in looked}
    kept, targets = [], {}
    for pair, row in rows:
        if problem := problems[pair.image]:
            rejected.append({"where": pair.where, "problem": f"{problem} ({pair.image})"})
            continue
        plain = str(PurePosixPath(pair.image))
        target = plain if plain.startswith(f"{IMAGES}/") else f"{IMAGES}/{plain}"
        if target not in targets:
            targets[target] = source.images / pair.image
        elif targets[target] != source.images / pair.image:  # a.jpg and images/a.jpg
            rejected.append({"where": pair.where, "problem": f"two images called {target}"})
            continue
        kept.append((pair, {**row, "images": [target]}))
    for target, path in targets.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        copied(path, folder / target)
    write_jsonl(folder / SAMPLES, (row for _, row in kept))
    conversations = [
        {
            "id": row["id"],
            "image": row["images"][0],
            "conversations": [
                {"from": "human", "value": pair.question},
                {"from": "gpt", "value": pair.caption},
            ],
        }
        for pair, row in kept
    ]
    write_text(folder / ORIGINAL, json.dumps(conversations, ensure_ascii=False))
    write_jsonl(folder / REJECTED, rejected)
    renamed = sum(bool(pair.id) and pair.id != row["id"] for pair, row in kept)
    return Counts(len(kept), len(targets), len(rejected), renamed)


def _new_id(number: int, taken: set[str]) -> str:
    """An id for the row of this number: a source that was imported before has such ids too."""
    return next(new for n in count(number) if (new := f"import-{n:09d}") not in taken)


def open_source(source: Path, images: Path | None, scratch: Path) -> Source:
    """Tell the format by name and content. scratch: folder for the images of a .tar."""
    if images and not images.is_dir():
        raise UserError(f"--images {images} is not a folder: name the one that the images' paths start from")
    if source.is_dir():
        if tables := sorted([*source.rglob("metadata.jsonl"), *source.rglob("metadata.csv")]):
            for folder, several in groupby(tables, lambda table: table.parent):
                if len(list(several)) > 1:
                    raise UserError(
                        f"{folder} has metadata.jsonl and metadata.csv, which would give each row twice: "
                        "move one of them away"
                    )
            return Source((pair for table in tables for pair in _table(table, source)), images or source)
        if shards := sorted(file for file in source.iterdir() if _is_archive(file)):
            return Source(_shards(shards, scratch), scratch)
        files = sorted([*source.glob("*.jsonl"), *source.glob("*.json")])
        rows = [file for file in files if file.suffix == ".jsonl"] or files
        if len(rows) != 1:
            raise UserError(
                f"{source} holds no metadata.jsonl, metadata.csv or .tar, and {len(rows)} files of rows: "
                f"name the file with the captions, and --images {source}"
            )
        return open_source(rows[0], images or source, scratch)
    if not source.exists():
        raise UserError(f"{source} does not exist")
    if _is_archive(source):
        return Source(_shards([source], scratch), scratch)
    match source.suffix.lower():
        case ".csv":
            return Source(_table(source, source.parent), images or source.parent)
        case ".json" if not _is_json_lines(source):
            value = read_json(source)
            coco = isinstance(value, dict) and isinstance(value.get("annotations"), list)
            if not coco and not isinstance(value, list):
                raise UserError(f"{source} is neither a list of rows nor COCO's captions")
            pairs = _coco(source, value) if coco else _listed(source, value)
            return Source(pairs, images or source.parent)
    lines = ((f"{source.name}, line {number}", row) for number, row in numbered_jsonl(source))
    return Source((pair for where, row in lines for pair in pairs_of(where, row)), images or source.parent)


def _is_json_lines(source: Path) -> bool:
    """Whether a .json has JSON lines, as some write them: the first of several lines is an object."""
    with source.open("rb") as handle:
        first, second = handle.readline(LINE), handle.readline(LINE)
    try:
        return bool(second.strip()) and isinstance(json_value(first), dict)
    except Malformed:
        return False


def _listed(source: Path, rows: list) -> Iterator[Pair]:
    for number, row in enumerate(rows, start=1):
        yield from pairs_of(f"{source.name}, entry {number}", row)


def pairs_of(where: str, row: Any, below: str = "") -> Iterator[Pair]:
    """The pairs of one object, one for each caption; a pair without image or caption says by that what is
    wrong. below: folder that its path is relative to."""
    if not isinstance(row, dict):
        yield Pair(where, "", "", QUESTION, "")
        return
    image = next((row[key] for key in IMAGE_KEYS if row.get(key)), "")
    if isinstance(image, list):
        image = image[0] if len(image) == 1 else ""
    image = f"{below}{image}" if isinstance(image, str) and image else ""
    row_id = row.get("id")
    row_id = str(row_id) if isinstance(row_id, str | int) and not isinstance(row_id, bool) else ""
    question: Any = QUESTION
    captions: Any = next((row[key] for key in CAPTION_KEYS if row.get(key)), "")
    turns = row.get("conversations")
    if isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, dict) for turn in turns):
        question, captions = turns[0].get("value"), turns[1].get("value")
    for caption in captions if isinstance(captions, list) else [captions]:
        text = caption_of(caption) if isinstance(caption, str) and IMAGE_TOKEN in caption else caption
        if isinstance(text, str) and isinstance(question, str):
            yield Pair(where, row_id, image, question, text.strip())
        else:
            yield Pair(where, row_id, image, QUESTION, "", "caption or question is no text")


def _coco(source: Path, value: dict[str, Any]) -> Iterator[Pair]:
    """The captions of COCO, one pair each."""
    try:
        files = {(image["id"], image["file_name"]) for image in value["images"]}
        names = dict(files)
        captions = [
            (item["id"], item["image_id"], names.get(item["image_id"]), item["caption"])
            for item in value["annotations"]
        ]
    except (KeyError, TypeError):
        raise UserError(
            f"{source}: COCO's captions have images with id and file_name, and annotations with id, image_id "
            "and caption"
        ) from None
    if len(names) < len(files):
        ((twice, _),) = Counter(number for number, _ in files).most_common(1)
        raise UserError(
            f"{source} has several images with the id {twice}, so it does not say whose a caption is: give "
            "each image an id of its own"
        )
    for number, image_id, image, caption in captions:
        where = f"{source.name}, annotation {number}"
        if image is None:
            yield Pair(where, "", "", QUESTION, "", f"there is no image with the id {image_id!r}")
        else:
            yield from pairs_of(where, {"id": number, "image": image, "caption": caption})


def _table(table: Path, root: Path) -> Iterator[Pair]:
    """The rows of an imagefolder's metadata; paths are relative to its own folder."""
    below = table.parent.relative_to(root).as_posix()
    below = "" if below == "." else f"{below}/"
    if table.suffix.lower() == ".csv":
        csv.field_size_limit(LINE)  # of the whole process; by default 128 KB
        try:
            with table.open(encoding="utf-8-sig", newline="") as handle:
                rows: list[Any] = _columns(table, csv.DictReader(handle, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{table} is no CSV in UTF-8: {error}") from None
    else:
        rows = list(read_jsonl(table))
    for number, row in enumerate(rows, start=1):
        yield from pairs_of(f"{below}{table.name}, row {number}", row, below)


def _columns(table: Path, reader: csv.DictReader) -> list[dict[str, str]]:
    """The rows of a CSV; UserError where its columns are not named as they must be, or a row has more."""
    names = reader.fieldnames or []
    columns = f"the columns {', '.join(map(repr, names))}" if names else "no columns"
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"{table} has the column {twice[0]!r} more than once: rename or remove one")
    for keys in (IMAGE_KEYS, CAPTION_KEYS):
        if not set(keys) & set(names):
            needed = f"one of {', '.join(keys)} is needed, and commas between the columns"
            raise UserError(f"{table} has {columns}: {needed}")
    rows = []
    for row in reader:
        if None in row:
            line = f"{table}, line {reader.line_num}"
            raise UserError(f"{line} has more values than columns: put texts with commas in quotes")
        rows.append(row)
    return rows


def _shards(shards: list[Path], scratch: Path) -> Iterator[Pair]:
    """The samples of WebDataset's archives, whose images are written to `scratch`."""
    for shard in shards:
        try:
            with tarfile.open(shard) as archive:
                yield from _samples(archive, shard, scratch)
                _assert_whole(archive, shard)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            reason = str(error).partition(":\n")[0]  # what each compression says of it follows
            raise UserError(f"{shard} cannot be read: {reason}") from None


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def _assert_whole(archive: tarfile.TarFile, shard: Path) -> None:
    """UserError for an archive without the two blocks of zeros that end it, and for one with more behind
    them: tarfile stops at either without a word."""
    handle = archive.fileobj
    assert handle is not None
    handle.seek(archive.offset)
    blocks = 0
    while block := handle.read(tarfile.BLOCKSIZE):
        if block.strip(b"\0"):
            if blocks:
                raise UserError(f"{shard} has more behind its end: give each archive a file of its own")
            break
        blocks += 1
    if not blocks:
        raise UserError(f"{shard} is cut off: its end is missing, so bring it anew")


def _samples(archive: tarfile.TarFile, shard: Path, scratch: Path) -> Iterator[Pair]:
    """The samples of one archive: neighbouring members of one name up to its first dot.

    A link stands for the member that it leads to. What would be written elsewhere is not, and an image that
    is not there is the row's problem.
    """
    key: str | None = None
    row: dict[str, Any] = {}
    for member in archive:
        path = PurePosixPath(member.name)
        stem, _, kind = path.name.partition(".")
        if not stem or not (member.isfile() or member.issym() or member.islnk()):
            continue  # a folder, and what systems add: .DS_Store, ._0001.jpg
        if (name := str(path.with_name(stem))) != key:
            if key is not None:
                yield from pairs_of(f"{shard.name}, {key}", row)
            key, row = name, {}
        try:
            content = archive.extractfile(member)
        except (KeyError, RecursionError):  # a link to what the archive does not have, or to itself
            content = None
        kind = f".{kind.lower()}"
        if kind in SUFFIXES:
            row.setdefault("images", []).append(_unpacked(content, path, shard, scratch))
        elif content is None:
            continue
        elif kind in (".txt", ".caption"):
            row["caption"] = _text(content.read(LONGEST + 4), f"{shard}: {member.name}")
        elif kind == ".json":
            try:
                value = json_value(content.read(1 << 20))
            except Malformed as error:
                raise UserError(f"{shard}: {member.name} is not valid JSON: {error}") from None
            if isinstance(value, dict):
                row |= {name: value[name] for name in (*CAPTION_KEYS, "conversations") if name in value}
    if key is not None:
        yield from pairs_of(f"{shard.name}, {key}", row)


def _text(content: bytes, where: str) -> str:
    """A text in UTF-8. Of one that is longer than LONGEST the end may be half a character."""
    try:
        return content.decode("utf-8-sig", errors="replace" if len(content) > LONGEST else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start}: save it in UTF-8") from None


def _unpacked(content: IO[bytes] | None, path: PurePosixPath, shard: Path, scratch: Path) -> str:
    """The path of an image below `scratch`. Nothing is written there of a path that leads out of it, nor
    without content."""
    if path.is_absolute() or ".." in path.parts:
        return str(path)
    folder = PurePosixPath(shard.name.partition(".tar")[0])
    again = (folder / f"again-{number}" for number in count(2))  # for another sample of the same name
    image = next(free / path for free in chain([folder], again) if not (scratch / free / path).exists())
    if content is not None:
        (scratch / image).parent.mkdir(parents=True, exist_ok=True)
        with (scratch / image).open("wb") as handle:
            shutil.copyfileobj(content, handle, 1 << 20)
    return str(image)
