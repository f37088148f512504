"""A folder for a model hub, from a merged model.

    python -m toolkit export --model output/training_dirs/MGM-2B-Finetune-synth --output mgm-2b-synth

The weights are the same files. The code of the model goes along, this repository's modules with their
imports made relative, so that transformers loads it with `trust_remote_code=True`; `proof.json` says how its
logits and answers compare with those of the source (see `proof`), and which files were compared.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from toolkit import code
from toolkit.assets.folder import digests, duplicated, present
from toolkit.errors import UserError
from toolkit.evaluate.answer_file import Checkpoint
from toolkit.export import card, proof
from toolkit.files import read_json, write_json, write_text
from toolkit.mgm.folder import INDEX, SHARD, TOKENIZER, checkpoint_files

HERE = Path(__file__).parent
MODULES = ("modeling_mgm", "processing_mgm")
# what the model's own configuration is checked with, and kernels that only a GPU's PyTorch can import
REPLACED = {"config": "parts", "language": "parts"}
LEFT_OUT = {"mining_kernel", "mining_triton", "folder", "files", "parse", *REPLACED}
IMPORT = re.compile(
    r"^(\s*)from toolkit(?:\.(?:mgm|export))?(?:\.(?!mgm |export )(\w+))? import", re.MULTILINE
)
# settings of a tokenizer by which it takes spaces out when it makes text of tokens
CLEANING = (
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
)
CLASSES = {"mgm_gemma": "MGMGemma", "mgm": "MGMLlama"}


def export(model: Path, output: Path) -> dict[str, Any]:
    """Write the folder and return its proof; nothing is left of a folder whose proof failed.

    model: a finetuning folder with merge.json, whose checkpoint is then the one that it lists, or a full
    checkpoint's folder. UserError for another folder, weights that are no safetensors, an output that exists,
    and a proof that failed.
    """
    if output.exists():
        raise UserError(f"{output} exists: name a folder that does not, or delete it")
    if not model.is_dir():
        raise UserError(f"{model} is not a folder")
    source = Checkpoint(model).path if (model / "merge.json").is_file() else model
    if not (source / INDEX).is_file() or not any(
        SHARD.fullmatch(path.name) for path in checkpoint_files(source)
    ):
        raise UserError(f"{source} holds no checkpoint in safetensors: merge the model first")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch) / output.name
        folder.mkdir()
        _weights(source, folder)
        write_code(folder)
        shutil.copyfile(HERE.parents[1] / "LICENSE", folder / "LICENSE-CODE")
        result = proof.prove(source, folder) | {"files": digests(present(folder))}
        write_json(folder / "proof.json", result)
        write_text(folder / "README.md", card.card(model, folder, result))
        folder.rename(output)
    return result


def _weights(source: Path, folder: Path) -> None:
    """Copies of the checkpoint's files; configuration, tokenizer and what ends an answer as
    transformers reads them."""
    from toolkit.mgm.checkpoint import Weights, convnext_sizes
    from toolkit.mgm.config import from_official
    from toolkit.mgm.text import ends, template_of
    from toolkit.mgm.tokenizer import load_tokenizer

    for path in checkpoint_files(source):
        if path.name not in ("config.json", "generation_config.json", *TOKENIZER):
            duplicated(path, folder / path.name)
    shapes = Weights(source).shapes()
    raw = read_json(source / "config.json")
    config = from_official(raw, shapes, f"{source}/config.json")
    depths, dims = convnext_sizes(shapes, "model.vision_tower_aux.vision_stages.")
    name = CLASSES[config.language.model_type]
    write_json(
        folder / "config.json",
        {
            **config.to_json(),
            "mm_vision_tower_aux_config": {"depths": depths, "dims": dims},
            "auto_map": {
                "AutoConfig": f"modeling_mgm.{name}Config",
                "AutoModelForCausalLM": f"modeling_mgm.{name}ForCausalLM",
                "AutoProcessor": "processing_mgm.MGMProcessor",
            },
            "dtype": raw.get("torch_dtype", raw.get("dtype", "float32")),
        },
    )
    write_json(
        folder / "processor_config.json",
        {"processor_class": "MGMProcessor", "auto_map": {"AutoProcessor": "processing_mgm.MGMProcessor"}},
    )
    tokenizer = load_tokenizer(source, config.model_max_length)
    template = template_of(tokenizer)
    generation = read_json(source / "generation_config.json")
    write_json(folder / "generation_config.json", {**generation, "eos_token_id": ends(tokenizer, template)})
    write_text(folder / "tokenizer.json", tokenizer.backend_tokenizer.to_str())
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.model_max_length,
            "padding_side": "left",
            "legacy": bool(tokenizer.init_kwargs.get("legacy")),
            **{name: getattr(tokenizer, name) for name in CLEANING},
            **{role: str(getattr(tokenizer, role)) for role in roles if getattr(tokenizer, role)},
        },
    )


def write_code(folder: Path) -> None:
    """The modules that the exported model is made of, beside each other."""
    files = {HERE / f"{name}.py" for name in (*MODULES, "parts")}
    files |= {HERE.parent / "errors.py"}
    needed = code.closure(*(f"toolkit.export.{name}" for name in (*MODULES, "parts")))
    for path in sorted(files | {path for path in needed if path.stem not in LEFT_OUT | {"__init__"}}):
        text = IMPORT.sub(_relative, path.read_text(encoding="utf-8"))
        write_text(folder / path.name, text)


def _relative(match: re.Match[str]) -> str:
    """An import of the toolkit as one of the same folder. Of a package (`from toolkit.mgm import …`) it finds
    nothing there, which the modules expect where kernels are absent."""
    module = REPLACED.get(match[2], match[2]) if match[2] else ""
    return f"{match[1]}from .{module} import"
