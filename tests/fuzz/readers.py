"""Every reader of foreign bytes, as a function of some bytes and a folder to put them into.

A reader returns whether it accepted the bytes, raises one of REFUSED, or else has a bug. Where another
program can say what was read, it is asked: what two readers take for two things is a way to hide.
"""

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import entry_tree
import worst
from mutations import contents, rebuilt

from toolkit.errors import UserError
from toolkit.images import Unreadable
from toolkit.parse import Malformed

REFUSED = (UserError, Malformed, Unreadable)
TREE = Path(tempfile.mkdtemp()) / "tree"
CRATE, RECORD = "output/ro-crate-metadata.json", f"{worst.FINETUNE}/run.json"


@dataclass(frozen=True)
class Reader:
    """read: whether it accepts the bytes. seeds: bytes that it accepts, from which the search begins."""

    read: Callable[[bytes, Path], bool]
    seeds: Callable[[], list[bytes]]


@cache
def honest() -> bytes:
    """A valid archive; its work tree is TREE, whose inputs `archive` and `answers` read."""
    entry_tree.EntryTree().build(TREE)
    with contextlib.chdir(TREE):
        entry_tree.pack()
        return Path("submit.zip").read_bytes()


@cache
def members() -> dict[str, bytes]:
    return dict(contents(honest()))


def archive(data: bytes, folder: Path) -> bool:
    """`verify` and `explain`; an archive that is not the honest one must not be valid."""
    from toolkit.bundle.explain import explain
    from toolkit.bundle.verify import verify

    path = put(data, folder, "submit.zip")
    with contextlib.suppress(UserError):
        explain(path, None)
    valid = verify(path, inputs=TREE / "input", make=False).valid
    members_read = contents(data)
    if valid and (members_read is None or sorted(members_read) != sorted(members().items())):
        raise AssertionError("wrongly valid")
    return valid


def member(name: str) -> Callable[[bytes, Path], bool]:
    """`archive` of the honest members with the bytes in the place of one of them."""
    return lambda data, folder: archive(rebuilt(list((members() | {name: data}).items())), folder)


def zipped(data: bytes, folder: Path) -> bool:
    """The zip and what is inside each member; what is accepted, Python's zipfile has to read alike."""
    from toolkit.bundle.zip import contents as inside
    from toolkit.bundle.zip.archive import Archive

    with Archive(put(data, folder, "a.zip")) as opened:
        if not opened.findings:
            opened.scan()
        if opened.findings:
            return False
        read = {}
        for name in opened.members:
            with opened.open(name) as stream:
                read[name] = stream.read()
        if (again := contents(data)) is None or dict(again) != read or len(again) != len(read):
            raise AssertionError("zipfile reads other members")

        def path(name: str) -> Path:
            return put(read[name], folder, f"member{Path(name).suffix}")

        inside.inspect(opened, path)
        return not opened.findings


def tensors(suffix: str) -> Callable[[bytes, Path], bool]:
    """The weights of a file, all of its tensors."""

    def read(data: bytes, folder: Path) -> bool:
        from toolkit.mgm.weights import Weights

        weights = Weights(put(data, folder, f"a{suffix}"))
        return sum(tensor.nbytes for tensor in weights.values()) <= len(data)

    return read


def jsonl(data: bytes, folder: Path) -> bool:
    """Rows; what was read is written and read again as the same."""
    from toolkit.data import samples
    from toolkit.files import read_jsonl, write_jsonl

    path = put(data, folder, "a.jsonl")
    sound = True
    for _, _, row, problem in samples.read_lines(path):
        sound &= not (problem or samples.row_problem(row))
    values = list(read_jsonl(path))
    write_jsonl(folder / "again.jsonl", values)
    if list(read_jsonl(folder / "again.jsonl")) != values:
        raise AssertionError("written and read again it is something else")
    return sound


def recipe(data: bytes, folder: Path) -> bool:
    from toolkit.data.engine import juicer
    from toolkit.data.recipe import allowed, load
    from toolkit.data.recipe.plan import files, plan
    from toolkit.files import read_yaml

    path = put(data, folder, "a.yaml")
    plan(path), files(path)
    document = read_yaml(path)
    if isinstance(document, dict) and isinstance(document.get("process"), list):
        allowed.problems(document["process"])
    with juicer.offline():
        return isinstance(load(path, {}).steps, list)


def configuration(data: bytes, folder: Path) -> bool:
    from toolkit import config

    return bool(config.read(put(data, folder, "a.yaml")))


def workbook(data: bytes, folder: Path) -> bool:
    from toolkit.benchmarks.tables import read_table
    from toolkit.benchmarks.upload import table_cells
    from toolkit.bundle.zip.archive import Bad
    from toolkit.bundle.zip.contents import Allowance, assert_plain_table

    path = put(data, folder, "a.xlsx")
    try:
        assert_plain_table(path, Allowance(len(data)))
    except Bad:
        plain = False
    else:
        plain = True
        table_cells(path)  # of an archive only what is plain gets here
    read_table(path)
    return plain


def image(data: bytes, folder: Path) -> bool:
    from toolkit import images
    from toolkit.evaluate.contamination import fingerprint

    fingerprint(data)
    pixels = images.load(data)
    return pixels.mode == "RGB" and pixels.size == images.size_of(data)


def log(data: bytes, folder: Path) -> bool:
    """The kit's log as `audit` judges it, and the lines as `rebuild` compares them."""
    from toolkit.audit import log as logs
    from toolkit.bundle.rebuild import near
    from toolkit.contest import ruleset
    from toolkit.terminal import printable

    rules = ruleset.load("online_2024")
    text = data.decode("utf-8", "replace")
    read, fixed = logs.read(text, rules.markers), rules.fixed.pretrain
    findings = list(logs.consistent("a.log", read, fixed, "pretrain", None))
    for finding in findings:
        printable(finding.message)
    near("a.log", data, data)
    return bool(read.steps)


def lock(data: bytes, folder: Path) -> bool:
    from toolkit.assets import lock as locks

    return bool(locks.read(put(data, folder, "assets.lock")))


def answers(data: bytes, folder: Path) -> bool:
    """Scored as by the benchmarks, and judged by `audit`; the questions are those of the honest entry."""
    from toolkit.audit import answers as audited
    from toolkit.benchmarks import BENCHMARKS
    from toolkit.contest import ruleset
    from toolkit.files import read_jsonl

    honest()
    path = put(data, folder, "bm1.jsonl")
    rules = ruleset.load("online_2024")
    rows = [row for row in read_jsonl(path) if isinstance(row, dict)]
    given = audited.Answers("textvqa", "bm1.jsonl", rows)
    list(audited.complete(given, rules)), list(audited.varied(given, rules)), audited.same(given, given)
    evaluation = TREE / "input/world-evaluation"
    questions = evaluation / "textvqa/llava_textvqa_val_v051_ocr.jsonl"
    files = {"questions": questions, "annotations": questions.with_name("TextVQA_0.5.1_val.json")}
    textvqa = next(name for name in BENCHMARKS if {"questions", "annotations"} <= set(BENCHMARKS[name].files))
    score = BENCHMARKS[textvqa].score(files, path)
    return 0 <= score["accuracy"] <= 100


def put(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def pictures() -> list[bytes]:
    """A small picture in each format that is read."""
    from PIL import Image

    from toolkit.images import FORMATS

    encoded = []
    for number, kind in enumerate(FORMATS):
        memory = io.BytesIO()
        Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 20 + number).convert("RGB").save(memory, kind)
        encoded.append(memory.getvalue())
    return encoded


def small() -> list[bytes]:
    """A zip with a member of each kind that is looked into."""
    kinds = {
        "solution/readme": b"text",
        "output/a.json": b'{"a": [1, 2]}',
        "output/processed_data/synth/synthetic_images/a.png": worst.png(1),
        "output/a.xlsx": next(content for name, content in members().items() if name.endswith(".xlsx")),
        "output/a.safetensors": weights("safetensors"),
        "output/a.bin": weights("bin"),
    }
    return [rebuilt(list(kinds.items())), rebuilt([("a", b"a")])]


def weights(kind: str) -> bytes:
    """Two small tensors in a file."""
    import torch
    from safetensors.torch import save

    values = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    if kind == "safetensors":
        return save(values)
    memory = io.BytesIO()
    torch.save(values, memory)
    return memory.getvalue()


def of(name: str) -> list[bytes]:
    """A member of the honest entry, by the end of its name."""
    return [next(content for path, content in members().items() if path.endswith(name))]


def repository(folder: str, pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((entry_tree.REPOSITORY / folder).glob(pattern))]


LOCK = {"sha256": "0" * 64, "bytes": 1, "address": "https://example.org", "date": "2024-01-01"}
ROWS = b'{"id": "1", "text": "<__dj__image>\\na \\u00e9 <|__dj__eoc|>", "images": ["a/b.jpg"]}\n'
READERS = {
    "archive": Reader(archive, lambda: [honest()]),
    "zip": Reader(zipped, small),
    "safetensors": Reader(tensors(".safetensors"), lambda: [weights("safetensors")]),
    "pickle": Reader(tensors(".bin"), lambda: [weights("bin")]),
    "jsonl": Reader(jsonl, lambda: [ROWS, ROWS * 3]),
    "recipe": Reader(recipe, lambda: repository("solution/recipes", "random*.yaml")),
    "configuration": Reader(configuration, lambda: repository("workflow/config", "tiny.yaml")),
    "xlsx": Reader(workbook, lambda: of(".xlsx")),
    "image": Reader(image, pictures),
    "log": Reader(log, lambda: of("pretrain.log")),
    "crate": Reader(member(CRATE), lambda: [members()[CRATE]]),
    "record": Reader(member(RECORD), lambda: [members()[RECORD]]),
    "lock": Reader(lock, lambda: [json.dumps({"version": 1, "assets": {"a": {"b": LOCK}}}).encode()]),
    "answers": Reader(answers, lambda: of("textvqa/bm1.jsonl")),
}


WHOLE = ("archive", "crate", "record")  # a whole `verify` each


def accepts(name: str, data: bytes, folder: Path) -> bool:
    """Whether the reader accepts the bytes; whatever else than one of REFUSED it raises is a bug."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return READERS[name].read(data, folder)
        except REFUSED:
            return False
