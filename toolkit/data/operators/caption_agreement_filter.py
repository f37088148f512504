"""Whether a caption still means what the caption meant that was noted before: a sentence model's cosine.

caption_note_mapper has the lines of a recipe.
"""

from functools import partial
from typing import Any

from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields
from data_juicer.utils.mm_utils import remove_special_tokens
from data_juicer.utils.model_utils import get_model
from pydantic import PositiveInt

from toolkit.data.batches import default_rows, model_folder
from toolkit.data.sentences import NOTED, embeddings, load_model

NAME = "caption_agreement_filter"


@OPERATORS.register_module(NAME)
class CaptionAgreementFilter(Filter):
    """Keep rows whose caption and noted caption have a cosine of at least `min_cosine`.

    The statistic is `caption_agreement`, from -1 to 1, rounded to 4 digits; 1 for equal captions. Needs
    caption_note_mapper before it. `hf_sentences`, `rows_at_once`: as of sentence_embedding_filter.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "text"  # and what was noted

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_sentences: str = "sentence-transformers/all-MiniLM-L6-v2",
        min_cosine: float = 0.85,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_cosine = min_cosine
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = partial(load_model, model_folder(hf_sentences, "an encoder of sentences"))

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows; ValueError for a row without a note."""
        metas = samples.get(Fields.meta) or [{}]
        if any(NOTED not in meta for meta in metas):
            raise ValueError("no caption was noted: put caption_note_mapper before the step that changes it")
        pairs = [
            (remove_special_tokens(meta[NOTED]), remove_special_tokens(text))
            for meta, text in zip(metas, samples[self.text_key], strict=True)
        ]
        texts = list(dict.fromkeys(text for noted, now in pairs if noted != now for text in (noted, now)))
        loaded = get_model(self.model_key, rank, self.use_cuda())
        vectors = dict(zip(texts, embeddings(texts, loaded, self.rows_at_once), strict=True))
        for statistics, (noted, now) in zip(samples[Fields.stats], pairs, strict=True):
            cosine = 1.0 if noted == now else sum(map(float.__mul__, vectors[noted], vectors[now]))
            statistics["caption_agreement"] = round(cosine, 4)
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        return sample[Fields.stats]["caption_agreement"] >= self.min_cosine
