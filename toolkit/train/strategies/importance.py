"""Dynamic sampling by loss with corrected weights (Katharopoulos & Fleuret 2018, "Not All Samples Are Created
Equal: Deep Learning with Importance Sampling", arXiv 1803.00942; the correction as in Schaul et al. 2016,
"Prioritized Experience Replay", arXiv 1511.05952, with beta 1).

For each micro-batch the model in its present state looks at `pool` times as many candidates, and rows are
drawn among them with replacement, in proportion to their summed loss. A row's weight is divided by the
expected number of its draws: on average the gradient is that of all candidates. Losses are computed anew in
each step, as in the first paper, which costs `pool` forward passes; nothing is kept from step to step.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy

from toolkit.train.strategies.base import Item, Outset, Strategy


class Importance(Strategy):
    """Which candidates a micro-batch takes, and what they weigh."""

    pool = 3

    def order(self, outset: Outset) -> list[int]:
        return [row for epoch in range(self.pool) for row in outset.shuffled(epoch)]

    def draw(self, group: list[Item], step: int, losses: Callable[[list[Item]], list[float]]) -> list[Item]:
        values = numpy.array(losses(group))
        count = -(-len(group) // self.pool)
        shares = values / values.sum() if values.sum() > 0 else numpy.full(len(group), 1 / len(group))
        generator = numpy.random.default_rng(self.drawn(step, group[0].sample.index))
        drawn = generator.choice(len(group), count, p=shares)
        return [
            replace(group[place], weight=float(group[place].weight / (count * shares[place])))
            for place in drawn
        ]
