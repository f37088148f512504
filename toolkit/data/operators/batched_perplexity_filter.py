"""Perplexity of every text by a causal language model, many rows at a time.

Data-Juicer's `perplexity_filter` needs kenlm, sentencepiece and an n-gram model that it downloads; its
thresholds belong to that model. Here any HF causal language model serves, and thresholds must be found anew.
"""

from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import remove_special_tokens
from data_juicer.utils.model_utils import get_model
from pydantic import PositiveInt
from torch import nn

from toolkit.data.batches import Inputs, compute, default_rows, model_folder, padded

NAME = "batched_perplexity_filter"


def load_model(folder: str, device: str) -> tuple[Any, Any]:
    """The language model in `folder` in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


@OPERATORS.register_module(NAME)
class BatchedPerplexityFilter(Filter):
    """Keep rows whose text has a perplexity within `min_ppl` and `max_ppl`.

    The statistic, `perplexity`, is the exponential of the mean negative log-likelihood of the text's tokens
    (special tokens of Data-Juicer left out, the model's first token put in front), rounded to one digit; 0
    for an empty text. `hf_model` is the folder of a causal language model; `longest` bounds the tokens that
    are read of a text; `rows_at_once` rows (256 on a GPU, else 16) are computed together, those whose texts
    round up to the same number of tokens.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "text"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_model: str = "openai-community/gpt2",
        min_ppl: float = 0.0,
        max_ppl: float = 1500.0,
        longest: PositiveInt = 128,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_ppl, self.max_ppl, self.longest = min_ppl, max_ppl, longest
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = partial(load_model, model_folder(hf_model, "a causal language model"))

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows."""
        model, tokenizer = get_model(self.model_key, rank, self.use_cuda())
        first = tokenizer.bos_token_id
        texts = [remove_special_tokens(text) for text in samples[self.text_key]]
        tokens = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        tokens = [[first, *row][: self.longest] for row in tokens]

        def perplexity(inputs: Inputs) -> list[float]:
            logits = model(**inputs).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), inputs["input_ids"][:, 1:], reduction="none"
            )
            mask = inputs["attention_mask"][:, 1:]
            return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).exp().tolist()

        values = compute(tokens, _prepare, perplexity, self.rows_at_once, model.device, group=_length)
        for statistics, row, value in zip(samples[Fields.stats], tokens, values, strict=True):
            statistics[StatsKeys.perplexity] = round(value, 1) if len(row) > 1 else 0.0
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        return self.get_keep_boolean(sample[Fields.stats][StatsKeys.perplexity], self.min_ppl, self.max_ppl)


def _length(row: list[int]) -> int:
    """Tokens to which a row is padded."""
    return padded(len(row))


def _prepare(rows: list[list[int]]) -> Inputs:
    """Rows of tokens padded on the right: causal attention keeps what follows from what comes before."""
    length = _length(rows[0])
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }
