"""What `verify` costs at worst: archives of nearly 64 MB, each full of what is dearest to read in members of
one kind.

    python tests/bundle/worst.py [--megabytes 64] [KIND ...]

Prints a table of seconds of computing and of peak memory, the drawing of inputs left out. Every archive has
to end within 60 s and 1 GiB. tests/fuzz puts smaller ones of the same kinds into its archives.
"""

import argparse
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

MIB = 1 << 20
CPU, MEMORY = 60, 1 << 30  # seconds, bytes
PRETRAIN, FINETUNE = (
    "output/training_dirs/MGM-Tiny-Pretrain-synth",
    "output/training_dirs/MGM-Tiny-Finetune-synth",
)
DATA, TEXTVQA = "output/processed_data/synth", "output/eval_results/MGM-Tiny-Finetune-synth/textvqa"
Members = dict[str, bytes]
Kind = Callable[[Members, int], Members]  # honest members and about as many bytes: those that differ


def filled(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece) + 1)


def zipped(members: Members) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return memory.getvalue()


def noisy(piece: bytes, size: int, share: int = 30) -> bytes:
    """`piece` again and again, with so much noise on lines of its own that it is not packed to less than 1 :
    `share`."""
    draw, blocks = random.Random(0), []
    for _ in range(size // MIB + 1):
        blocks.append(filled(piece, MIB) + b"\n" + draw.randbytes(MIB // share // 2).hex().encode() + b"\n")
    return b"".join(blocks)[:size]


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


@cache
def png(side: int, chunks: bytes = b"") -> bytes:
    """A black square; `side` in hundreds of pixels."""
    side, deflate = 100 * side, zlib.compressobj(9)
    rows = b"".join(deflate.compress(bytes(side + 1) * 100) for _ in range(side // 100)) + deflate.flush()
    header = chunk(b"IHDR", struct.pack(">2L5B", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def sheet(rows: int, cells: int, cell: bytes = b'<c t="inlineStr"><is><t>a</t></is></c>') -> bytes:
    """A worksheet."""
    head = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
    return head + (b"<row>" + cell * cells + b"</row>") * rows + b"</sheetData></worksheet>"


def table(base: Members, **parts: bytes) -> Members:
    """The upload table with other parts."""
    name = next(name for name in base if name.endswith(".xlsx"))
    with zipfile.ZipFile(io.BytesIO(base[name])) as archive:
        old = {part: archive.read(part) for part in archive.namelist()}
    return {
        name: zipped(old | {f"xl/{part.replace('__', '/')}.xml": content for part, content in parts.items()})
    }


def indexes(size: int) -> Members:
    """As many values in records as are read."""
    text = b'{"weight_map": {' + b",".join(b'"%d":"a"' % number for number in range(200_000)) + b"}}"
    return {f"{FINETUNE}/{number}.safetensors.index.json": text for number in range(min(8, size // MIB))}


def record(files: int) -> bytes:
    item = {"path": "output/a", "sha256": "", "bytes": 0}
    value = {"record": 2, "stage": "a", "settings": {}, "results": {}, "device": "cpu", "outputs": {}}
    return json.dumps(value | {"inputs": {str(number): item for number in range(files)}}).encode()


def safetensors(size: int) -> bytes:
    """Nothing but a header."""
    entries = b",".join(b'"%d":{"data_offsets":[0,0]}' % number for number in range(size // 40))
    return struct.pack("<Q", size) + (b"{" + entries + b"}").ljust(size)


def images(size: int) -> Members:
    """As many pixels as are read, beside bytes that allow for them."""
    pictures = {
        f"{DATA}/synthetic_images/{n}.png": png(70) + bytes([n]) for n in range(1 + size // (4 * MIB))
    }
    return pictures | {"output/noise.dat": random.Random(0).randbytes(size * 3 // 4)}


def packed_texts(size: int) -> Members:
    """Texts in images that unpack to a MiB each."""
    texts = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MIB))) * 60
    return {f"{DATA}/synthetic_images/{n}.png": png(1, texts) for n in range(size // 64_000)}


def answers(size: int, text: str) -> Members:
    row = json.dumps({"question_id": 1, "prompt": "a", "text": text, "answer_id": "c"}, ensure_ascii=False)
    return {f"{TEXTVQA}/bm1.jsonl": filled(f"{row}\n".encode(), size)}


def text(piece: bytes, name: str = "solution/a.txt", times: int = 1) -> Kind:
    """A file of one piece again and again, with some noise: such may have more bytes than the archive."""
    return lambda base, size: {name: noisy(piece, times * size)}


def lines(name: str, line: bytes, most: int = 1 << 40) -> Kind:
    return lambda base, size: {name: filled(line + b"\n", min(size, most))}


ROW, REMOVED = b'{"id": "1", "text": "a", "images": ["a"]}', b'{"line": 1, "id": "a", "reason": "b"}'
STEP = b"{'loss': 1.0, 'epoch': 0.1, 'learning_rate': 0.1}"
EXCEPTION = b"{id: R1, file: a, reason: b}"
CHUNKS = chunk(b"iTXt", b"a\0" + b"\x78\x9c" * 500 + zlib.compress(bytes(MIB)))
RECORD, LOG, EXCEPTIONS = f"{PRETRAIN}/run.json", f"{PRETRAIN}/pretrain.log", "solution/exceptions.yaml"
PROJECTOR, SHARD = f"{PRETRAIN}/mm_projector.bin", f"{FINETUNE}/merged/model-00001-of-00001.safetensors"
KINDS: dict[str, Kind] = {
    "names of secrets in one line": lambda base, size: {"solution/a.txt": filled(b"token", size)},
    "names of secrets": text(b"token secret:"),
    "names of secrets with values": text(b"token=aaaaaaaaaaaaaaaa "),
    "addresses": text(b"a@a:/"),
    "hyphens": text(b"://a-a-a-a-"),
    "every hint": text(b"@token bearer ://a:/home/ .local eyJ sk- /mnt/a ghp_ hf_ AKIA"),
    "more text than is searched": text(b"token secret:", times=3),
    "strings in rows": text(b'"/', "output/a.jsonl", times=3),
    "keys in rows": text(b"eyJ.sk-", "output/a.jsonl", times=3),
    "readable runs": lambda base, size: {"solution/a.dat": filled(b"abcdef\0a\0", size)},
    "many requirements": lines("solution/requirements.txt", b"a"),
    "a long readme": lines("solution/readme", b"# a"),
    "tiny members": lambda base, size: {f"solution/{number}": b"token" for number in range(size // 110)},
    "as many members as are read": lambda base, size: {
        f"solution/{'a/' * 15}{n}": b"x" * 3000 for n in range(size // 4200)
    },
    "long names": lambda base, size: {
        f"solution/{'a/' * 20_000}{number}": b"" for number in range(size // 80_200)
    },
    "rows": lines(f"{DATA}/processed_data.jsonl", ROW),
    "as many rows as are read": lines(f"{DATA}/processed_data.jsonl", ROW, 50 * MIB),
    "values in rows": lines(f"{DATA}/processed_data.jsonl", b"[" + b"{}," * 30_000 + b"0]"),
    "removed rows": lines(f"{DATA}/removed.jsonl", REMOVED, 40 * MIB),
    "training rows": lambda base, size: {
        f"{DATA}/llava.json": b"[" + b'{"":0},' * min(size // 7, 3_900_000) + b"0]"
    },
    "one long string": lambda base, size: {
        f"{DATA}/llava.json": '["\U0001f600'.encode() + b"a" * (size - 20) + b'"]'
    },
    "answers": lambda base, size: answers(size // 5, "b"),
    "answers of wide letters": lambda base, size: answers(size // 2, "\U0001f600" * 900_000),
    "answers to be normalised": lambda base, size: answers(size // 2, "it's . a an the ten 1. " * 9000),
    "deep JSON": lambda base, size: {RECORD: b"[" * min(size, 3_900_000)},
    "empty objects": lambda base, size: {RECORD: b"[" + filled(b"{},", size) + b"0]"},
    "values in records": lambda base, size: indexes(size),
    "files of a record": lambda base, size: {RECORD: record(min(size // 60, 600_000))},
    "a log of empty lines": lines(LOG, b"{}", 8 * MIB - 9),
    "a log of steps": lines(LOG, STEP, 5_000_000),
    "a deep log": lines(LOG, b"{" + b"-" * 4000, 8 * MIB - 4100),
    "aliases": lambda base, size: {EXCEPTIONS: b"- &a " + EXCEPTION + b"\n" + filled(b"- *a\n", 250_000)},
    "exceptions": lines(EXCEPTIONS, b"- " + EXCEPTION, 250_000),
    "recipes": lambda base, size: {
        f"solution/recipes/{n}.yaml": b"process:\n" + filled(b"- a: {b: 1}\n", 250_000) for n in range(4)
    },
    "too many recipes": lambda base, size: {
        f"solution/recipes/{n}.yaml": b"process: [a]\n" * 200 for n in range(size // 4200)
    },
    "a table of many rows": lambda base, size: table(base, worksheets__sheet1=sheet(300_000, 2)),
    "as large a table as is read": lambda base, size: table(
        base, worksheets__sheet1=sheet(14_000, 26, b"<c/>")
    ),
    "a table with a far cell": lambda base, size: table(
        base, worksheets__sheet1=sheet(1, 1, b'<c r="XFD1048576"/>')
    ),
    "a table of formats": lambda base, size: table(
        base, styles=b"<a>" + b'<xf numFmtId="164"/>' * 400_000 + b"</a>"
    ),
    "a table of many members": lambda base, size: table(
        base, **{str(number): b"<a/>" for number in range(size // 140)}
    ),
    "a header of safetensors": lambda base, size: {SHARD: safetensors(min(size, 16 * MIB))},
    "as long a list of tensors as is read": lambda base, size: {PROJECTOR: listed(4 * MIB - 100_000)},
    "a longer list of tensors": lambda base, size: {PROJECTOR: listed(16 * MIB)},
    "large images": lambda base, size: {
        f"{DATA}/synthetic_images/{n}.png": png(70) for n in range(1 + size // 48_000)
    },
    "as many pixels as are read": lambda base, size: images(size),
    "chunks of an image": lambda base, size: {
        f"{DATA}/synthetic_images/a.png": png(1, chunk(b"tEXt", b"") * (size // 12))
    },
    "packed texts of images": lambda base, size: packed_texts(size),
    "segments of an image": lambda base, size: {
        "solution/a.jpg": b"\xff\xd8" + filled(b"\xff\xe0\0\2", size)
    },
    "packed texts of an image": lambda base, size: {
        "solution/a.png": b"\x89PNG\r\n\x1a\n" + CHUNKS * (size // 2200)
    },
}


def listed(size: int) -> bytes:
    """A .bin file whose list of tensors is of short instructions."""
    return zipped({"archive/data.pkl": b"\x80\x02" + b"N0" * (size // 2) + b"N."})


def build(kind: str, base: Members, size: int, path: Path) -> None:
    """Write the archive of this kind; `size`: bytes that it should have at most."""
    members = base | KINDS[kind](base, size)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            # what is packed more than 1 : 100 is refused
            loose = len(zlib.compress(content[:MIB], 6)) * 50 > len(content[:MIB])
            info.compress_type = zipfile.ZIP_DEFLATED if loose else zipfile.ZIP_STORED
            archive.writestr(info, content)


def honest(folder: Path) -> Members:
    """Members of a small valid entry; its inputs lie in `folder`/tree/input."""
    import entry_tree

    from toolkit.bundle.entry import Entry
    from toolkit.bundle.validate import FILE, document, validate
    from toolkit.contest import ruleset
    from toolkit.files import write_json

    root = folder / "tree"
    entry_tree.EntryTree().build(root)
    entry = Entry(root, "synth", ruleset.load("embedded"))
    before = Path.cwd()
    os.chdir(root)
    try:
        entry = Entry(Path(), "synth", ruleset.load("embedded"))
        write_json(FILE, document(entry, validate(entry)))
        return {name: Path(name).read_bytes() for name in entry.members()}
    finally:
        os.chdir(before)


CHILD = """
import resource, sys
from pathlib import Path
from toolkit.bundle.verify import verify
report = verify(Path(sys.argv[1]), inputs=Path(sys.argv[2]))
usage = resource.getrusage(resource.RUSAGE_SELF)
ids = sorted({finding.id for finding in report.findings})
print(f"{usage.ru_utime + usage.ru_stime:.1f} {usage.ru_maxrss} {','.join(ids)}")
"""


def measured(archive: Path, inputs: Path, limit: int = 600) -> tuple[float, int, str]:
    """(seconds of computing, peak bytes, ids of findings) of `verify` in a process of its own. RuntimeError
    if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", CHILD, archive, inputs],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=bound,
    )
    if done.returncode:
        raise RuntimeError(f"{archive.name}: status {done.returncode}\n{done.stderr[-2000:]}")
    seconds, peak, ids = done.stdout.splitlines()[-1].split(" ")
    return float(seconds), int(peak) << 10, ids


def table_rows(kinds: list[str], size: int) -> Iterator[tuple[str, int, float, int, str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = honest(folder)
        for kind in kinds:
            path = folder / "submit.zip"
            build(kind, base, size, path)
            yield kind, path.stat().st_size, *measured(path, folder / "tree/input")


def run() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", help=", ".join(KINDS))
    parser.add_argument("--megabytes", type=int, default=64)
    arguments = parser.parse_args()
    failed = 0
    for kind, size, seconds, peak, ids in table_rows(
        arguments.kinds or list(KINDS), arguments.megabytes * MIB - MIB
    ):
        over = seconds > CPU or peak > MEMORY
        failed += over
        print(
            f"{kind:32} {size / 1e6:6.1f} MB {seconds:6.1f} s {peak / MIB:6.0f} MiB  "
            f"{ids}{'  TOO MUCH' if over else ''}",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    sys.exit(run())
