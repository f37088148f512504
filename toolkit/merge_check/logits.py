"""What base, adapter and merged model compute of the same tokens, each loaded by transformers and PEFT."""

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files import read_json

ROWS, TOKENS = 2, 16
# of the logits' standard deviation, by the merged type; computed in float32, rounded are the weights alone
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}


@torch.inference_mode()
def compared(
    base: Path, adapter: Path, merged: Path, types: set[torch.dtype]
) -> tuple[dict[str, Any], list[str]]:
    """(`logit_difference` between the merged model and the base with the adapter, its `logit_tolerance`, and
    by how much the adapter moves them, `logits_moved`; what is wrong), in standard deviations of the logits.
    types: of the merged tensors.

    In float32 on the CPU: 4 bytes of memory a parameter. Nothing where the model reads no tokens, or its
    code is not transformers'.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    model = load(base)
    if model is None:
        return {"logits": "not compared: not a model of transformers that reads tokens"}, []
    from peft import PeftModel

    generator = torch.Generator().manual_seed(20240724)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (ROWS, TOKENS), generator=generator)
    try:
        with_adapter = PeftModel.from_pretrained(model, adapter).eval()
    except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise UserError(f"PEFT cannot load {adapter}: {_reason(error)}") from None
    adapted = logits(with_adapter, ids)
    with with_adapter.disable_adapter():
        plain = logits(with_adapter, ids)
    del model, with_adapter
    folded = load(merged)
    if folded is None:
        return {}, ["the merged folder is not a model of transformers that reads tokens, as the base is"]
    spread = float(adapted.std())
    tolerance = max(TOLERANCE.get(kind, 0.0) for kind in types)
    difference = float((logits(folded, ids) - adapted).abs().max()) / spread
    moved = float((plain - adapted).abs().max()) / spread
    problems = []
    if moved == 0:
        problems.append("the adapter does not change what the base computes")
    elif not difference <= tolerance:
        problems.append(f"logits differ by {difference:.2g} standard deviations, {tolerance:g} are rounding")
    elif difference >= moved:
        problems.append("the merged model computes what the base does, not what the adapter makes of it")
    measured = {"logit_difference": difference, "logit_tolerance": tolerance, "logits_moved": moved}
    return {name: f"{value:.2g}" for name, value in measured.items()}, problems


def load(folder: Path) -> Any:
    """The model of a folder, by the class that its configuration names; None for one of other code."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    names = read_json(folder / "config.json").get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    kind: Any = getattr(transformers, name, None)
    if not hasattr(kind, "forward") or "input_ids" not in inspect.signature(kind.forward).parameters:
        return None
    try:
        return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"transformers cannot load {folder}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What a library says, without the listing that follows: the first line, and the next where it ends in a
    colon."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{first} {others[0]}" if first.endswith(":") and others else first


def logits(model: Any, ids: Tensor) -> Tensor:
    """[rows, tokens, vocabulary], or the last hidden states of a model without a head."""
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    output = model(input_ids=ids, **more)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state
