"""The files of a checkpoint's folder by their names, and whether this program wrote them. Reads no weights
and needs no torch."""

import re
from contextlib import suppress
from pathlib import Path

from toolkit.errors import UserError
from toolkit.files import read_json

# by language model, in the config.json that is written here
ARCHITECTURES = {"gemma": "MGMGemmaForCausalLM", "llama": "MGMLlamaForCausalLM"}
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
SENTENCEPIECE = "tokenizer.model"  # of Vicuna; Gemma's folders have one too, and are read by tokenizer.json
TOKENIZER = (
    "tokenizer.json",
    SENTENCEPIECE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def checkpoint_files(folder: Path | str) -> list[Path]:
    """What `save_checkpoint` wrote and `load_checkpoint` and `load_tokenizer` read, sorted."""
    names = {"config.json", "generation_config.json", INDEX, *TOKENIZER}
    return sorted(
        path
        for path in Path(folder).glob("*")
        if path.is_file() and (path.name in names or SHARD.fullmatch(path.name))
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether the configuration or the index in `folder` was written by `save_checkpoint`."""
    config, index = (
        read_json(folder / name) if (folder / name).is_file() else None for name in ("config.json", INDEX)
    )
    if (
        isinstance(config, dict)
        and config.get("architectures") in [[name] for name in ARCHITECTURES.values()]
        and "mm_vision_tower_config" in config
    ):
        return True
    placed = index.get("weight_map") if isinstance(index, dict) else None
    return config is None and isinstance(placed, dict) and "model.mm_projector.0.weight" in placed


def discard_checkpoint(folder: Path) -> None:
    """Delete the files of a checkpoint that `save_checkpoint` wrote; the folder too, if nothing else is in
    it.

    UserError for files of such names that are none of this program's.
    """
    files = checkpoint_files(folder)
    if files and not is_checkpoint(folder):
        raise UserError(
            f"{files[0]} is not a file of a checkpoint that this program wrote: move it away, a checkpoint "
            "will be written there"
        )
    # what the others are known by goes last
    for path in sorted(files, key=lambda path: path.name == "config.json"):
        path.unlink()
    with suppress(OSError):
        folder.rmdir()
