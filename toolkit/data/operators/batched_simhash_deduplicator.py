"""Near-duplicate captions by SimHash: the stock `document_simhash_deduplicator` wants a package that is built
from C++ source.

A caption's words in windows are hashed to 64 bits; each bit of the caption's hash is the majority of theirs
(Charikar, STOC 2002). Captions whose hashes differ in few bits are near-duplicates.
"""

import hashlib
from typing import Any

import numpy as np
from data_juicer.ops.base_op import OPERATORS, Deduplicator
from data_juicer.utils.constant import HashKeys
from data_juicer.utils.mm_utils import remove_special_tokens

from toolkit.data.words import spaced

NAME = "batched_simhash_deduplicator"


@OPERATORS.register_module(NAME)
class BatchedSimhashDeduplicator(Deduplicator):
    """Keep the first row of each group whose captions' hashes differ in at most `hamming_distance` bits,
    chains included.

    `window_size`: words hashed together. The toolkit finds the groups (toolkit/data/duplicates.py), so plain
    Data-Juicer cannot run it.
    """

    _reads = "text"

    def __init__(self, window_size: int = 2, hamming_distance: int = 4, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if window_size < 1 or not 0 <= hamming_distance < 32:
            raise ValueError("window_size is at least 1, hamming_distance from 0 to 31")
        self.window_size, self.hamming_distance = window_size, hamming_distance

    def compute_hash(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Add the hash, a 64-bit number as text, as the stock operator does."""
        words = spaced(remove_special_tokens(sample[self.text_key]).lower()).split()
        windows = {
            " ".join(words[begin : begin + self.window_size])
            for begin in range(max(1, len(words) - self.window_size + 1))
        }
        digests = b"".join(
            hashlib.blake2b(window.encode(), digest_size=8).digest() for window in sorted(windows)
        )
        bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8).reshape(-1, 8), axis=1)
        majority = np.packbits(2 * bits.sum(axis=0) > len(bits))
        sample[HashKeys.simhash] = str(int.from_bytes(majority.tobytes(), "big"))
        return sample
