"""Which seeds there are, and training seeds in names: a configuration's first seed has the plain name of its
experiment, each further one `-seed{n}` behind it."""

import re
from collections.abc import Sequence
from pathlib import Path

LIMIT = 2**63  # torch, numpy and Python take seeds from 0 to below it alike
SUFFIX = re.compile(r"-seed(\d+)$")  # no experiment's own name ends like this


def run_name(experiment: str, seed: int, seeds: Sequence[int]) -> str:
    """The name of the training run of an experiment with one of the configuration's seeds."""
    return experiment if seed == seeds[0] else f"{experiment}-seed{seed}"


def with_seed(folder: Path, seed: int, seeds: Sequence[int]) -> Path:
    """The folder of the same experiment, trained with another seed."""
    return folder.with_name(run_name(folder.name, seed, seeds))


def experiment_of(run: str) -> str:
    """The experiment that a training run belongs to."""
    return SUFFIX.sub("", run)
