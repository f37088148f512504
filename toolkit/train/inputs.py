"""What a training reads: base models, samples, the projector of stage 1; and whether they are the files that
the records before it name."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.contest.records import Record, read_record
from toolkit.errors import UserError
from toolkit.files import read_json, sha256
from toolkit.mgm.folder import TOKENIZER
from toolkit.mgm.weights import Weights


@dataclass(frozen=True)
class BaseModels:
    """Folders of the models that MGM is built from; ConvNeXt in open_clip's format."""

    llm: Path
    clip: Path
    convnext: Path

    def files(self) -> dict[str, Path]:
        """What is read of them, as named inputs of a record: weights, configurations, tokenizer."""
        beside = {
            "llm": ("config.json", *TOKENIZER),
            "clip": ("config.json",),
            "convnext": ("open_clip_config.json",),
        }
        files: dict[str, Path] = {}
        for name, names in beside.items():
            folder = getattr(self, name)
            weights = Weights(folder).files()
            for number, path in enumerate(weights, start=1):
                files[name if len(weights) == 1 else f"{name}-{number}"] = path
            files |= {f"{name}/{file}": folder / file for file in names if (folder / file).is_file()}
        return files


def hashed(inputs: Mapping[str, Path]) -> dict[Path, str]:
    """SHA-256 of each input; UserError when an asset's manifest.json lies beside one that it does not list,
    or lists with another hash."""
    hashes = {}
    for path in inputs.values():
        hashes[path] = sha256(path)
        manifest = path.parent / "manifest.json"
        listed = read_json(manifest) if manifest.is_file() else {}
        if isinstance(listed, dict) and "asset" in listed and isinstance(files := listed.get("files"), dict):
            known = files.get(path.name)
            if not isinstance(known, dict) or known.get("sha256") != hashes[path]:
                raise UserError(
                    f"{path} is not the file that {manifest} lists (sha256): fetch the asset again"
                )
    return hashes


def assert_pretrained(projector: Path, base: Mapping[str, Path], hashes: Mapping[Path, str]) -> None:
    """UserError unless the record beside the projector's file lists this very file and was made with these
    base models. The kit's file has no record, which is said."""
    path = projector.parent / "run.json"
    if not path.exists():
        print(
            f"{projector} has no run.json beside it: which base models it was trained with is not known",
            file=sys.stderr,
        )
        return
    record = read_record(path, "pretrain")
    if projector.name not in record.outputs or record.outputs[projector.name].sha256 != hashes[projector]:
        raise UserError(
            f"{projector} is not the file that {path} lists (sha256): restore it, or pretrain again"
        )
    assert_same_base(record, base, hashes)


def assert_same_base(record: Record, base: Mapping[str, Path], hashes: Mapping[Path, str]) -> None:
    """UserError when the base models are not those that a training's record names."""
    stated = {
        name: item.sha256
        for name, item in record.inputs.items()
        if name not in ("samples", "projector", "teacher")
    }
    others = sorted(
        name for name in {*stated, *base} if stated.get(name) != (name in base and hashes[base[name]])
    )
    if others:
        names = ", ".join(str(base.get(name, name)) for name in others)
        raise UserError(f"{Path(record.file).parent} was trained on another base: {names} has changed since")
