"""Near-duplicates by meaning: the first row of those whose embeddings lie close stays (SemDeDup, Abbas et al.
2023, arXiv:2303.09540, here without its clusters: every pair is compared).

    - sentence_embedding_filter:
        hf_sentences: "{sentences}"
    - embedding_duplicate_selector:
        max_cosine: 0.9
"""

from typing import Annotated, Any

import numpy as np
from data_juicer.ops.base_op import OPERATORS, Selector
from pydantic import Field

from .cluster_uniform_selector import vectors_of

NAME = "embedding_duplicate_selector"
SCALE = 10_000  # numbers of a vector as integers: their products are exact in whatever order they are added
BLOCK = 2048  # rows compared at once with as many: 34 MB of cosines


@OPERATORS.register_module(NAME)
class EmbeddingDuplicateSelector(Selector):
    """Keep each row whose vector has a cosine of at most `max_cosine` with those of all rows kept before it.

    `embedding`: the statistic that holds a row's vector, a list of numbers of one length, which a filter
    before it computed.
    """

    def __init__(
        self,
        embedding: str = "sentence_embedding",
        max_cosine: Annotated[float, Field(ge=0, le=1)] = 0.9,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.embedding, self.max_cosine = embedding, max_cosine

    def process(self, dataset: Any) -> Any:
        """The rows that repeat none before. UserError where a row lacks the embedding."""
        if not len(dataset):
            return dataset
        self.cosines, stays = compared(vectors_of(dataset, self.embedding), self.max_cosine)
        return dataset.select(np.flatnonzero(stays).tolist())

    def statistics(self, _: Any) -> list[dict[str, float]]:
        """What `process` judged each row by: the largest cosine with a row kept before it."""
        return [{"cosine": round(float(cosine), 4)} for cosine in self.cosines]


def compared(vectors: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """[rows] each: the largest cosine with a row kept before it, -1 for the first row; whether it is kept.
    vectors: float [rows, dimensions]."""
    whole = np.empty(vectors.shape, dtype=np.int16)
    for begin in range(0, len(whole), BLOCK):
        block = slice(begin, begin + BLOCK)
        lengths = np.linalg.norm(vectors[block].astype(np.float64), axis=1, keepdims=True)
        whole[block] = np.rint(SCALE * vectors[block] / np.maximum(lengths, 1e-12))
    cosines, stays = np.full(len(whole), -1.0), np.ones(len(whole), dtype=bool)
    for begin in range(0, len(whole), BLOCK):
        block = slice(begin, begin + BLOCK)
        rows = whole[block].astype(np.float64)
        for start in range(0, begin, BLOCK):
            kept = whole[start : start + BLOCK][stays[start : start + BLOCK]]
            if len(kept):
                products = rows @ kept.T.astype(np.float64)
                cosines[block] = np.maximum(cosines[block], products.max(1) / SCALE**2)
        among = rows @ rows.T / SCALE**2
        for place in range(len(rows)):
            before = among[place, :place][stays[begin : begin + place]]
            cosines[begin + place] = max(cosines[begin + place], before.max(initial=-1.0))
            stays[begin + place] = cosines[begin + place] <= limit
    return cosines, stays
