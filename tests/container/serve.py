"""Serve the parts of a rehearsal: data as archives, as the contest does, and models as a hub does.

    python3 tests/container/serve.py PARTS REGISTRY

PARTS: a folder for each part, made as tests/container/run makes them. REGISTRY: the registry.yaml that gets
an entry `served-PART` for each. Prints the server's address, and serves until it is killed.
"""

import json
import sys
import tarfile
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "assets"))
from servers import Server

DATA = {  # part, which is also its role: the files that rules name
    "seed": {"samples": "mgm_pretrain_stage_1.jsonl", "original": "stage_1.json"},
    "instruction": {"samples": "mgm_instruction_stage_1.json"},
    "evaluation": {
        "questions": "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        "annotations": "textvqa/TextVQA_0.5.1_val.json",
        "images": "textvqa/train_images",
        "table": "mmbench/mmbench_dev_20230712.tsv",
    },
}
MODELS = {"gemma": "llm", "clip": "clip", "convnext": "convnext", "captioner": "captioner"}  # part: role


def packed(folder: Path) -> bytes:
    """A .tar.gz of the folder."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


def main(parts: Path, registry: Path) -> None:
    server = Server()
    entries = {}
    for part, files in DATA.items():
        name = f"{part}.tar.gz"
        server.files[name] = packed(parts / part)
        download = {"name": name, "url": server.url(name)}
        entries[part] = {"kind": "url", "serves": part, "files": files, "downloads": [download]}
    for part, role in MODELS.items():
        repository = f"rehearsal/{part}"
        files = {path.name: path.read_bytes() for path in (parts / part).iterdir()}
        server.add_repository(repository, **files)
        downloads = [{"name": name} for name in sorted(files)]
        entries[part] = {"kind": "hub", "serves": role, "repository": repository, "downloads": downloads}
    with registry.open("a") as file:
        for part, entry in entries.items():
            entry |= {"role": "part of a rehearsal, from a server of this machine", "licence": "Apache-2.0"}
            file.write(f"served-{part}: {json.dumps(entry)}\n")  # JSON is YAML
    print(server.url(""), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
