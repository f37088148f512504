"""The proof that an evaluation wants of a finetuning folder."""

from pathlib import Path

from toolkit.contest.records import write_record
from toolkit.mgm.folder import checkpoint_files


def prove(folder: Path, **results) -> None:
    """Write merge.json for the files in `folder`/merged; `results` make it another one."""
    outputs = {path.name: path for path in checkpoint_files(folder / "merged")}
    write_record(
        folder / "merge.json",
        "merge",
        inputs={},
        outputs=outputs,
        settings={},
        results={"checkpoint": "merged"} | results,
    )
