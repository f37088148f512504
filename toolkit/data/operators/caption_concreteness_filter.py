"""How concrete every caption is, whether or not it fits its image: ICC (Yanuka et al. 2024, "ICC: Quantifying
Image Caption Concreteness for Multimodal Dataset Curation", arXiv 2403.01306).

    - caption_concreteness_filter:
        hf_concreteness: "{concreteness}"
        min_score: {quantile: 0.5}
"""

import sys
from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields
from data_juicer.utils.mm_utils import remove_special_tokens
from data_juicer.utils.model_utils import get_model
from pydantic import PositiveInt

from toolkit.data.batches import Inputs, compute, default_rows, model_folder, padded

NAME = "caption_concreteness_filter"
LONGEST = 512  # tokens that RoBERTa has positions for


def load_model(folder: str, device: str) -> tuple[Any, Any]:
    """The classifier in `folder` in float32, and its tokenizer. ValueError for one with several classes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    if (labels := model.config.num_labels) != 1:
        raise ValueError(f"{folder} holds a classifier of {labels} classes, not a model that gives one score")
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


@OPERATORS.register_module(NAME)
class CaptionConcretenessFilter(Filter):
    """Keep rows whose caption has a concreteness within `min_score` and `max_score`.

    The statistic, `caption_concreteness`, is the model's only logit, rounded to 4 digits: near 1 for "a man
    with a white shirt", near 0 for an abstract caption; it may lie beyond both. `hf_concreteness` is the
    folder of a RoBERTa that gives a score; `rows_at_once` rows (256 on a GPU, else 16) are computed together,
    those whose captions round up to the same number of tokens.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "text"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_concreteness: str = "moranyanuka/icc",
        min_score: float = 0.5,
        max_score: float = sys.maxsize,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_score, self.max_score = min_score, max_score
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = partial(load_model, model_folder(hf_concreteness, "a text classifier"))

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows."""
        model, tokenizer = get_model(self.model_key, rank, self.use_cuda())
        captions = [remove_special_tokens(text) for text in samples[self.text_key]]
        tokens = tokenizer(captions, truncation=True, max_length=LONGEST).input_ids if captions else []

        def score(inputs: Inputs) -> list[float]:
            return model(**inputs).logits[:, 0].tolist()

        prepare = partial(_prepare, tokenizer.pad_token_id)
        values = compute(tokens, prepare, score, self.rows_at_once, model.device, group=_length)
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics["caption_concreteness"] = round(value, 4)
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        return self.get_keep_boolean(
            sample[Fields.stats]["caption_concreteness"], self.min_score, self.max_score
        )


def _length(row: list[int]) -> int:
    """Tokens to which a row is padded."""
    return padded(len(row))


def _prepare(padding: int, rows: list[list[int]]) -> Inputs:
    """Rows of tokens, padded on the right to one length."""
    length = _length(rows[0])
    return {
        "input_ids": torch.tensor([row + [padding] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }
