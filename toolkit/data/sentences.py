"""Sentence embeddings of captions: what the operators share that ask how alike texts are.

The model is the asset all-minilm-l6-v2 or any BERT of sentence-transformers whose sentence is the mean of its
tokens (Reimers and Gurevych 2019, arXiv:1908.10084).
"""

from functools import partial
from typing import Any

import torch

from toolkit.data.batches import Inputs, compute, padded

NOTED = "caption"  # of a row, in its meta: the text that a later one is compared with
LONGEST = 256  # tokens that are read of a text, as MiniLM's own configuration has it


def load_model(folder: str, device: str) -> tuple[Any, Any]:
    """The encoder in `folder` in float32, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    model: torch.nn.Module = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def pooled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of each text's tokens, of length 1: float [texts, dimensions]. ids, mask: int [texts, tokens],
    the mask 1 for a token and 0 for padding."""
    tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.nn.functional.normalize((tokens * mask[..., None]).sum(1), dim=-1)


def embeddings(captions: list[str], loaded: tuple[Any, Any], rows_at_once: int) -> list[list[float]]:
    """The embedding of each caption, of length 1. `loaded`: of `load_model`."""
    model, tokenizer = loaded
    tokens = tokenizer(captions, truncation=True, max_length=LONGEST).input_ids if captions else []

    def of_batch(inputs: Inputs) -> list[list[float]]:
        return pooled(model, inputs["ids"], inputs["mask"]).tolist()

    prepare = partial(_prepare, tokenizer.pad_token_id)
    return compute(tokens, prepare, of_batch, rows_at_once, model.device, group=_length)


def _length(row: list[int]) -> int:
    """Tokens to which a row is padded."""
    return padded(len(row))


def _prepare(padding: int, rows: list[list[int]]) -> Inputs:
    """Rows of tokens, padded on the right to one length."""
    length = _length(rows[0])
    ids = [row + [padding] * (length - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return {"ids": torch.tensor(ids), "mask": torch.tensor(mask)}
