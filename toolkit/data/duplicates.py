"""Groups of duplicates from the hashes of Data-Juicer's deduplicators; the first row of a group stays.

The groups are those that the stock operators make, but every row knows which row it repeats, and memory stays
small: the stock MinHash operator keeps a Python set for each band of each row.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

SIDE = 8  # pixels of a thumbnail


def firsts(operator: Any, hashes: Iterable[dict[str, Any]]) -> list[int]:
    """For each row the place of the row it repeats, its own place for a row that stays. `hashes`: what
    `compute_hash` adds to a row; of MinHash and SimHash only numbers are kept."""
    from data_juicer.utils.constant import HashKeys

    hashes = iter(hashes)
    first_row = next(hashes, None)
    if first_row is None:
        return []
    hashes = itertools.chain([first_row], hashes)
    if HashKeys.minhash in first_row:
        numbers = itertools.chain.from_iterable(row_hashes[HashKeys.minhash] for row_hashes in hashes)
        bands = np.fromiter(numbers, np.uint64).reshape(-1, len(first_row[HashKeys.minhash]))
        return _connected(len(bands), [pair for column in bands.T for pair in _equal(column)])
    if HashKeys.simhash in first_row:
        values = np.fromiter((int(row_hashes[HashKeys.simhash]) for row_hashes in hashes), np.uint64)
        return near(values, operator.hamming_distance)
    seen: dict[tuple, int] = {}
    first_places = []
    for place, row_hashes in enumerate(hashes):
        key = tuple(sorted(row_hashes.items()))
        # an image that has no hash is a duplicate of nothing
        first_places.append(
            place if row_hashes.get(HashKeys.imagehash, True) == "" else seen.setdefault(key, place)
        )
    return first_places


def thumbnail(image: Image.Image) -> bytes:
    """A picture's colours in 8 x 8 pixels, RGB: what tells pictures apart that have one perceptual hash."""
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def _equal(column: np.ndarray) -> list[np.ndarray]:
    """Pairs (2 x n places) that link all equal values of a column."""
    order = np.argsort(column, kind="stable")
    repeats = np.flatnonzero(column[order][1:] == column[order][:-1])
    return [np.stack([order[repeats], order[repeats + 1]])] if len(repeats) else []


def _connected(rows: int, pairs: list[np.ndarray]) -> list[int]:
    """The first place of each row's connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), dtype=np.int64)
    _, labels = connected_components(
        coo_array((np.ones(links.shape[1], dtype=np.int8), links), shape=(rows, rows)), directed=False
    )
    first = np.full(labels.max() + 1, rows)
    np.minimum.at(first, labels, np.arange(rows))
    return first[labels].tolist()


def near(hashes: np.ndarray, distance: int) -> list[int]:
    """Groups of 64-bit hashes that differ in at most `distance` bits, chains included.

    Cut into distance + 1 blocks, two such hashes have a block in common (Manku, Jain and Das Sarma, WWW
    2007).
    """
    pairs = _equal(hashes)
    unique, place = np.unique(hashes, return_index=True)
    for low, high in itertools.pairwise(np.linspace(0, 64, distance + 2).astype(int).tolist()):
        block = (unique >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(block, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            for number, member in enumerate(members[:-1]):
                candidates = members[number + 1 :]
                candidates = candidates[np.bitwise_count(unique[candidates] ^ unique[member]) <= distance]
                pairs.append(np.stack([np.full(len(candidates), place[member]), place[candidates]]))
    return _connected(len(hashes), pairs)
