"""What kinds of folders hold a model, and how each is read."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import UserError
from toolkit.evaluate.answer_file import Checkpoint

if TYPE_CHECKING:
    from toolkit.mgm.answer import Answerer
    from toolkit.train.inputs import BaseModels


def answerer(folder: Path, base: "BaseModels | None", device: str, batch_size: int) -> "Answerer":
    """The model of a finetuning folder with merge.json, whose files are then those that it lists, of a full
    checkpoint, ours or official, or, with its base models, of a LoRA folder; UserError for another folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder of a model")
    if base and not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no adapter_config.json: base models are for a LoRA folder")
    merged = not base and (folder / "merge.json").is_file()
    if not merged and not base and (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds a LoRA adapter alone: name its base models too (--llm, --clip, --convnext), or "
            "fold it into them with `python -m toolkit train merge`"
        )
    path = Checkpoint(folder).path if merged else folder
    from toolkit.mgm.answer import Answerer

    if not base:
        return Answerer(path, device, batch_size)
    from toolkit.train.merge import read_adapted

    return Answerer(path, device, batch_size, partial(read_adapted, base=base))


def base_flags(parser: argparse.ArgumentParser) -> None:
    """Declare --model, and the base models of a LoRA folder."""
    parser.add_argument(
        "--model", type=Path, required=True, help="finetuning folder, full checkpoint or LoRA folder"
    )
    for name, about in (("llm", "language model"), ("clip", "CLIP"), ("convnext", "open_clip ConvNeXt")):
        parser.add_argument(f"--{name}", type=Path, help=f"{about} that a LoRA folder was trained on")


def base_of(arguments: argparse.Namespace) -> "BaseModels | None":
    """The base models that were named; UserError unless it is all three or none."""
    folders = [arguments.llm, arguments.clip, arguments.convnext]
    if not any(folders):
        return None
    if not all(folders):
        raise UserError("--llm, --clip and --convnext go together: name all three base models")
    from toolkit.train.inputs import BaseModels

    return BaseModels(*folders)


def name_of(folder: Path) -> str:
    """What the model of a folder is called: as the finetuning folder, where the folder is its `merged`."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "merged" else folder.name
