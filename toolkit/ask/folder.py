"""What kinds of folders hold a model, and how each is read."""

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import UserError
from toolkit.evaluate.answer_file import Checkpoint

if TYPE_CHECKING:
    from toolkit.mgm.answer import Answerer, Read
    from toolkit.train.inputs import BaseModels

NF4 = "nf4"


def answerer(
    folder: Path, base: "BaseModels | None", device: str, batch_size: int, quantize: str | None = None
) -> "Answerer":
    """The model of a finetuning folder with merge.json, whose files are then those that it lists, of a full
    checkpoint, ours or official, or, with its base models, of a LoRA folder. quantize: "nf4" keeps the
    decoder's linear layers in 4 bits. UserError for another folder, and for 4 bits without bitsandbytes."""
    if quantize not in (None, NF4):
        raise UserError(f"{quantize!r} is unknown: {NF4} is what a model can be quantised to")
    if quantize and not find_spec("bitsandbytes"):
        raise UserError("4-bit weights need the package bitsandbytes, which is not installed: run make setup")
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
    from toolkit.mgm.answer import Answerer, from_checkpoint

    read: Read = from_checkpoint
    if base:
        from toolkit.train.merge import read_adapted

        read = partial(read_adapted, base=base)
    return Answerer(path, device, batch_size, _in_four_bits(read) if quantize else read)


def _in_four_bits(read: "Read") -> "Read":
    """The same, quantised layer by layer on its way to the device, which never holds the full weights."""
    import torch

    from toolkit.train.nf4 import quantize

    def quantised(folder, dtype, device):
        model, tokenizer = read(folder, dtype, torch.device("cpu"))
        quantize(model, device)
        return model.to(device), tokenizer

    return quantised


def base_flags(parser: argparse.ArgumentParser, *, repeatable: bool = False) -> None:
    """Declare --model, once or repeatable, how it is loaded, and the base models of a LoRA folder."""
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        action="append" if repeatable else "store",
        help="finetuning folder, full checkpoint or LoRA folder" + "; repeatable" * repeatable,
    )
    parser.add_argument(
        "--quantize", choices=(NF4,), help="4 bits for the decoder's linear layers; answers differ a little"
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
