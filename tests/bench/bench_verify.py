"""Time and peak memory of `verify` on an archive of many gigabytes, run by hand.

    python tests/bench/bench_verify.py --gigabytes 0 20

The archive is an honest small entry whose merged weights have a tensor of that many bytes, all zero, stored
without compression: a sparse file that takes no disk, read and hashed like any other. The first line of the
output is the check's own.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BLOCK = bytes(1 << 24)


def shard(size: int) -> tuple[bytes, int]:
    """(header, bytes that follow) of a safetensors file with `size` zeros."""
    header = json.dumps({"weights": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header, size


def digests(head: bytes, size: int) -> tuple[str, int]:
    """SHA-256 and CRC of the shard."""
    digest, crc = hashlib.sha256(head), zlib.crc32(head)
    for start in range(0, size, len(BLOCK)):
        block = BLOCK[: size - start]
        digest.update(block)
        crc = zlib.crc32(block, crc)
    return digest.hexdigest(), crc


def build(folder: Path, size: int) -> None:
    """submit.zip in `folder`, and the inputs that it names."""
    import entry_tree

    from toolkit.__main__ import main
    from toolkit.bundle.entry import Entry
    from toolkit.contest import ruleset

    tree = entry_tree.EntryTree()
    tree.build(folder / "tree")
    os.chdir(folder / "tree")
    head, zeros = shard(size)
    with Path(tree.shard).open("wb") as handle:
        handle.write(head)
        handle.truncate(len(head) + zeros)
    tree.merge_record()
    shutil.rmtree(tree.results())
    tree.evaluate("synth", right=0.7)
    main(
        [
            "bundle",
            "validate",
            "--experiment",
            "synth",
            "--rules",
            "embedded",
            "--output",
            "output/reports/validation.json",
        ]
    )
    members = [
        name for name in Entry(Path(), "synth", ruleset.load("embedded")).members() if name != tree.shard
    ]
    with zipfile.ZipFile("submit.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(tree.shard)
        info.create_system, info.external_attr = 3, 0o100644 << 16
        info.header_offset = 0
        info.CRC, info.file_size, info.compress_size = (
            digests(head, zeros)[1],
            len(head) + zeros,
            len(head) + zeros,
        )
        archive.fp.write(info.FileHeader(zip64=True) + head)  # zipfile itself would write all zeros
        archive.fp.seek(zeros, os.SEEK_CUR)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(info)
        archive.NameToInfo[info.filename] = info
        archive._didModify = True
        for name in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = (
                3,
                0o100644 << 16,
                zipfile.ZIP_DEFLATED,
            )
            archive.writestr(info, Path(name).read_bytes())


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0, 20])
    for gigabytes in parser.parse_args().gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), int(gigabytes * 1e9))
            begin = time.monotonic()
            command = [
                sys.executable,
                "-m",
                "toolkit",
                "bundle",
                "verify",
                "submit.zip",
                "--inputs",
                "input",
                "--json",
                "verify.json",
            ]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            status = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                check=False,
            ).returncode
            after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begin
            actual = sorted(
                {finding["id"] for finding in json.loads(Path("verify.json").read_text())["findings"]}
            )
            size = Path("submit.zip").stat().st_size
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            memory = after.ru_maxrss // 1024
            print(
                f"{size:,} bytes: status {status}, findings {actual}, {wall:.1f} s ({seconds:.1f} s of CPU), "
                f"{memory} MiB"
            )
            os.chdir(REPOSITORY)


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY / "tests/bundle"), str(REPOSITORY)]
    run()
