"""What operators that make new rows share: how a batch grows, and chance that depends on a row's content
alone."""

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np


def with_generated(
    batch: dict[str, list], generated: Sequence[Sequence[dict[str, Any]]], keep_original: bool
) -> dict[str, list]:
    """Data-Juicer's batch (a list for each field) with new rows: `generated[i]` holds the changed fields of
    each row made from row i.

    New rows follow their original, which stays if `keep_original` is true or nothing was made from it.
    """
    rows = []
    for number, changes in enumerate(generated):
        row = {field: values[number] for field, values in batch.items()}
        if keep_original or not changes:
            rows.append(row)
        rows.extend(copy.deepcopy(row) | change for change in changes)
    return {field: [row[field] for row in rows] for field in batch}


def generator(seed: int, *content: str | int) -> np.random.Generator:
    """Random numbers for one row: the same for the same seed and content, whatever rows come with it."""
    digest = hashlib.sha256(json.dumps([seed, *content]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
