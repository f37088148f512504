"""The best rows by several statistics at once: each becomes its rank among the rows, and the ranks are
averaged with stated weights.

Ranks make statistics comparable whatever their units and distributions, and no single extreme value decides.
"""

import math
from typing import Annotated, Any

import numpy as np
from data_juicer.ops.base_op import OPERATORS, Selector
from data_juicer.utils.constant import Fields
from pydantic import Field, PositiveInt

from toolkit.errors import UserError

NAME = "weighted_score_selector"
SCORE = "weighted_score"  # the name of what it computes


@OPERATORS.register_module(NAME)
class WeightedScoreSelector(Selector):
    """Keep the rows with the highest score, in the order they came; of equal scores the earlier row.

    `weights`: {statistic: weight}, statistics that filters before it computed; a negative weight prefers low
    values. A statistic's rank goes from 0 (lowest) to 1 (highest), equal values share the mean of their
    ranks; the score is the weighted mean of the ranks, where a negative weight counts 1 - rank. `top_num` or
    `top_ratio` says how many rows are kept; the fewer if both do.
    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        top_num: PositiveInt | None = None,
        top_ratio: Annotated[float, Field(gt=0, le=1)] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not weights or not all(math.isfinite(weight) and weight for weight in weights.values()):
            raise ValueError("weights is not {statistic: weight} with weights other than 0")
        if top_num is None and top_ratio is None:
            raise ValueError("give top_num or top_ratio")
        self.weights, self.top_num, self.top_ratio = weights, top_num, top_ratio

    def statistics(self, dataset: Any) -> list[dict[str, float]]:
        """The score of each row, from 0 to 1, as `{"weighted_score": score}`. UserError names a statistic
        that a row lacks."""
        from scipy.stats import rankdata

        rows = list(dataset[Fields.stats])
        total = np.zeros(len(rows))
        for name, weight in self.weights.items():
            ranks = rankdata([_number(row, name) for row in rows], method="average")
            share = (ranks - 1) / max(len(rows) - 1, 1)
            total += abs(weight) * (share if weight > 0 else 1 - share)
        return [{SCORE: float(score)} for score in total / sum(map(abs, self.weights.values()))]

    def process(self, dataset: Any) -> Any:
        """The selected rows."""
        if not len(dataset):
            return dataset
        scores = np.array([row[SCORE] for row in self.statistics(dataset)])
        sizes = [self.top_num, self.top_ratio and max(1, int(self.top_ratio * len(dataset)))]
        size = min(size for size in sizes if size is not None)
        return dataset.select(sorted(np.argsort(-scores, kind="stable")[:size].tolist()))


def _number(statistics: dict[str, Any], name: str) -> float:
    """A row's statistic; of a list, as image filters have one number an image, the first."""
    value = statistics.get(name)
    value = value[0] if isinstance(value, list) and value else value
    if value is None or isinstance(value, list | str) or math.isnan(value):
        names = ", ".join(sorted(statistics)) or "none"
        raise UserError(
            f"a row has no number {name}: put the filter that computes it before; its statistics: {names}"
        )
    return float(value)
