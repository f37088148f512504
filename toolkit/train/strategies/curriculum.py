"""Curriculum (Bengio et al. 2009, ICML): easy rows first, and at the pace of Platanios et al. 2019,
"Competence-based Curriculum Learning for Neural Machine Translation", arXiv 1903.09848.

Difficulty is a row's mean loss by the model that the stage starts from. When the share t of the steps is
done, a step's rows are drawn among the easiest sqrt(t (1 - START^2) + START^2) of all rows, without those
drawn before: with replacement, as in the paper, some rows would never be seen. Batches are not grouped by
modality and length.
"""

import numpy

from toolkit.train.strategies.base import Outset, Strategy

START = 0.01  # of all rows, the easiest, from which the first step draws; the paper's


class Curriculum(Strategy):
    """The order of the rows."""

    def order(self, outset: Outset) -> list[int]:
        losses = outset.losses()
        easiest = sorted(range(len(losses)), key=lambda row: (losses[row], row))
        generator = numpy.random.default_rng(self.drawn())
        order: list[int] = []
        waiting: list[int] = []
        for step in range(outset.steps):
            share = step / outset.steps
            competence = (share * (1 - START**2) + START**2) ** 0.5
            known = max(int(competence * len(losses)), len(order) + outset.batch)
            waiting += easiest[len(order) + len(waiting) : known]
            drawn = generator.permutation(len(waiting))[: outset.batch]
            order += [waiting[place] for place in drawn]
            taken = set(drawn.tolist())
            waiting = [row for place, row in enumerate(waiting) if place not in taken]
        return order
