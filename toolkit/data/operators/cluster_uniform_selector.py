"""Equally many rows from every cluster of an embedding: frequent motifs no longer crowd out rare motifs.

k-means as in scipy, seeded. The centres are fitted to at most 256 rows a cluster, which is what k-means needs
(FAISS' default too), so its time does not grow with the number of rows; then every row goes to its nearest
centre.
"""

from typing import Annotated, Any

import numpy as np
import pyarrow.compute as pc
from data_juicer.ops.base_op import OPERATORS, Selector
from data_juicer.utils.constant import Fields
from pydantic import Field, NonNegativeInt, PositiveInt

from toolkit.errors import UserError

NAME = "cluster_uniform_selector"
FITTED = 256  # rows a cluster that the centres are fitted to


@OPERATORS.register_module(NAME)
class ClusterUniformSelector(Selector):
    """Keep rows so that all clusters are as even as they can be, in the order they came.

    `embedding`: the statistic that holds a row's vector, a list of numbers of one length, which a filter
    before it computed. `clusters`: how many. `top_num` or `top_ratio` says how many rows are kept; the fewer
    if both do. A cluster that is smaller than its share is kept whole and the others get the rest. Which rows
    of a cluster are kept, chance decides, by `seed`.
    """

    def __init__(
        self,
        embedding: str = "image_embedding",
        clusters: PositiveInt = 400,
        top_num: PositiveInt | None = None,
        top_ratio: Annotated[float, Field(gt=0, le=1)] | None = None,
        seed: NonNegativeInt = 1024,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if top_num is None and top_ratio is None:
            raise ValueError("give top_num or top_ratio")
        self.embedding, self.clusters, self.seed = embedding, clusters, seed
        self.top_num, self.top_ratio = top_num, top_ratio

    def process(self, dataset: Any) -> Any:
        """The selected rows. UserError where a row lacks the embedding."""
        if not len(dataset):
            return dataset
        random = np.random.default_rng(self.seed)
        labels = cluster(vectors_of(dataset, self.embedding), self.clusters, random)
        sizes = [self.top_num, None if self.top_ratio is None else max(1, int(self.top_ratio * len(dataset)))]
        quotas = shares(np.bincount(labels).tolist(), min(size for size in sizes if size is not None))
        order = random.permutation(len(labels))
        selected = np.concatenate(
            [order[labels[order] == label][:quota] for label, quota in enumerate(quotas)]
        )
        return dataset.select(sorted(selected.tolist()))


def vectors_of(dataset: Any, embedding: str) -> np.ndarray:
    """The rows' statistic `embedding`, float32 [rows, dimensions]. UserError where a row lacks it."""
    # as Arrow has them: as Python's floats they would take 24 times the memory
    table = dataset.select_columns([Fields.stats]).with_format("arrow")[:]
    statistics = table[Fields.stats]
    names = sorted(field.name for field in statistics.type)
    vectors = pc.struct_field(statistics, embedding) if embedding in names else None
    lengths = vectors and pc.unique(pc.list_value_length(vectors)).to_pylist()
    if not lengths or None in lengths or 0 in lengths:
        raise UserError(
            f"a row has no {embedding}: put the filter that computes it before; its statistics: "
            f"{', '.join(names) or 'none'}"
        )
    if len(lengths) > 1:
        raise ValueError(f"the rows' {embedding} have {' and '.join(map(str, lengths))} numbers")
    return pc.list_flatten(vectors).to_numpy().astype(np.float32, copy=False).reshape(-1, *lengths)


def cluster(vectors: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """The cluster of each vector, int [rows], from 0; empty clusters take no number."""
    from scipy.cluster.vq import kmeans2, vq

    fitted = vectors
    if len(vectors) > clusters * FITTED:
        fitted = vectors[np.sort(random.choice(len(vectors), clusters * FITTED, replace=False))]
    # k-means needs a different vector for each centre
    clusters = min(clusters, len({vector.tobytes() for vector in fitted}))
    centres, _ = kmeans2(fitted, clusters, iter=20, minit="++", rng=random)
    labels = np.concatenate(
        [vq(vectors[begin : begin + 4096], centres)[0] for begin in range(0, len(vectors), 4096)]
    )
    return np.unique(labels, return_inverse=True)[1]


def shares(sizes: list[int], total: int) -> list[int]:
    """How many rows each cluster gives so that their sum is `total` (or all rows) and the largest share is as
    small as it can be.

    What cannot be shared evenly goes to the largest.
    """
    remaining, clusters, quotas = min(total, sum(sizes)), len(sizes), [0] * len(sizes)
    # the smallest first: what it lacks is spread over the others
    for place in sorted(range(clusters), key=lambda place: sizes[place]):
        quotas[place] = min(sizes[place], remaining // clusters)
        remaining, clusters = remaining - quotas[place], clusters - 1
    return quotas
