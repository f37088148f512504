"""Pictures that show nothing of what their captions say: blank pictures, and those that stand in for many,
such as "image not available".

    - placeholder_image_deduplicator:
        min_captions: 2

A deduplicator keeps the first row of a placeholder, whose caption is as false as the others'; here all of
them go. Put the step before others make several rows of one: an image's own new captions say different things
of it, too.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from data_juicer.ops.base_op import OPERATORS, Deduplicator
from data_juicer.ops.deduplicator.image_deduplicator import get_hash_method
from data_juicer.utils.constant import HashKeys
from data_juicer.utils.mm_utils import load_data_with_context, load_image
from pydantic import PositiveInt

from toolkit.data.duplicates import near, thumbnail
from toolkit.data.words import content

NAME = "placeholder_image_deduplicator"
DEVIATION, THUMBNAIL = "deviation", "thumbnail"
ALIKE = 16  # of 255: what two copies of an image may differ by in a colour of their thumbnails


@OPERATORS.register_module(NAME)
class PlaceholderImageDeduplicator(Deduplicator):
    """Remove the rows whose image is plain, and all rows of an image that comes with `min_captions` unrelated
    captions or more.

    Plain: no colour channel, 0 to 255, has a standard deviation of `min_deviation` or more. The same image:
    perceptual hashes differ in at most `hamming_distance` of 64 bits, chains included, and thumbnails look
    alike. Captions are unrelated if they have no word in common, articles and their like apart. The toolkit
    finds the groups, so plain Data-Juicer cannot run it.
    """

    _reads = "image"

    def __init__(
        self,
        min_captions: PositiveInt = 2,
        hamming_distance: int = 4,
        min_deviation: float = 2.0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if min_captions < 2 or not 0 <= hamming_distance < 32:
            raise ValueError("min_captions is at least 2, hamming_distance from 0 to 31")
        self.min_captions, self.hamming_distance, self.min_deviation = (
            min_captions,
            hamming_distance,
            min_deviation,
        )
        self.hasher = get_hash_method("phash")()

    def compute_hash(self, sample: dict[str, Any], context: bool = False) -> dict[str, Any]:
        """Add the perceptual hash, as of image_deduplicator, a thumbnail, and the largest standard deviation
        of a colour channel."""
        sample, images = load_data_with_context(sample, context, sample[self.image_key], load_image)
        (image,) = images.values()
        sample[HashKeys.imagehash] = self.hasher.encode_image(image_array=np.array(image))
        sample[THUMBNAIL] = thumbnail(image).hex()
        sample[DEVIATION] = round(float(np.array(image).std(axis=(0, 1)).max()), 3)
        return sample

    def reasons(self, captions: Sequence[str], hashes: Sequence[dict[str, Any]]) -> list[str | None]:
        """For each row why it goes, None for a row that stays. `hashes`: what `compute_hash` adds to a
        row."""
        reasons: list[str | None] = [
            f"the image is plain: its colours deviate by {row_hashes[DEVIATION]} of 255"
            if row_hashes[DEVIATION] < self.min_deviation
            else None
            for row_hashes in hashes
        ]
        values = np.array([int(row_hashes[HashKeys.imagehash], 16) for row_hashes in hashes], dtype=np.uint64)
        # first row of a hash -> (thumbnail, rows) of each image
        copies: dict[int, list[tuple[np.ndarray, list[int]]]] = {}
        firsts = near(values, self.hamming_distance)
        rows_of_hash = np.bincount(firsts)
        for place, first in enumerate(firsts):
            # nearly all hashes have one row, of which nothing is kept then
            if reasons[place] is None and rows_of_hash[first] >= self.min_captions:
                picture = np.frombuffer(bytes.fromhex(hashes[place][THUMBNAIL]), dtype=np.uint8).astype(
                    np.int16
                )
                copies_of_hash = copies.setdefault(first, [])
                places = next(
                    (places for other, places in copies_of_hash if np.abs(other - picture).max() <= ALIKE),
                    None,
                )
                if places is None:
                    copies_of_hash.append((picture, places := []))
                places.append(place)
        for _, places in (image for images in copies.values() for image in images):
            number = unrelated(captions[place] for place in places)
            if number >= self.min_captions:
                for place in places:
                    reasons[place] = f"the image comes with {number} captions that have no word in common"
        return reasons


def unrelated(captions: Iterable[str]) -> int:
    """How many of the captions, taken in their order, have no word in common with each other; those without
    words do not count."""
    number = 0
    seen: set[str] = set()
    for caption in captions:
        words = content(caption)
        if words and not words & seen:
            number, seen = number + 1, seen | words
    return number
