"""A sentence model's embedding of every caption as a statistic, for selectors that look at what they mean. No
row is removed.

    - sentence_embedding_filter:
        hf_sentences: "{sentences}"
    - embedding_duplicate_selector:
        max_cosine: 0.9
"""

from functools import partial
from typing import Any

from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields
from data_juicer.utils.mm_utils import remove_special_tokens
from data_juicer.utils.model_utils import get_model
from pydantic import PositiveInt

from toolkit.data.batches import default_rows, model_folder
from toolkit.data.sentences import embeddings, load_model

NAME = "sentence_embedding_filter"
DIGITS = 4  # after the point: a cosine of 384 rounded numbers is right to about 1e-4


@OPERATORS.register_module(NAME)
class SentenceEmbeddingFilter(Filter):
    """Keep every row and note its caption's `sentence_embedding`: numbers of length 1, rounded to 4 digits.

    `hf_sentences` is the folder of a BERT of sentence-transformers (toolkit/data/sentences.py);
    `rows_at_once` rows (256 on a GPU, else 16) are computed together, those whose captions round up to the
    same number of tokens.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "text"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_sentences: str = "sentence-transformers/all-MiniLM-L6-v2",
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = partial(load_model, model_folder(hf_sentences, "an encoder of sentences"))

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows."""
        loaded = get_model(self.model_key, rank, self.use_cuda())
        captions = [remove_special_tokens(text) for text in samples[self.text_key]]
        values = embeddings(captions, loaded, self.rows_at_once)
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics["sentence_embedding"] = [round(number, DIGITS) for number in value]
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True: the statistic is all this is for."""
        return True
