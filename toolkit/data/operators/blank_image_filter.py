"""Pictures with nearly nothing on them: blank ones, and a pale notice such as "image not available".

    - blank_image_filter:
        min_entropy: 0.75
        min_deviation: 12.0

placeholder_image_deduplicator knows a placeholder by its many captions; this knows one that is there once.
"""

from typing import Any

import numpy as np
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields
from PIL import Image

from toolkit.images import opened, rgb

NAME = "blank_image_filter"
SIDE = 64  # pixels of the thumbnail
LEVELS = 32  # greys that are told apart: the noise of a JPEG's plain areas stays within one or two


@OPERATORS.register_module(NAME)
class BlankImageFilter(Filter):
    """Keep rows (one image each) whose luminance has an entropy of `min_entropy` bits or a standard deviation
    of `min_deviation` of 255: what is blank has little of both. A thing on white has contrast, a pale thing
    many greys.

    The statistics, lists of one number, are of a thumbnail of 64 x 64 pixels: `image_entropy`, Shannon's
    entropy of its greys in 32 levels, 0 for one level, at most 5, and `image_deviation`. A JPEG is decoded at
    a fraction of its size for them.
    """

    _reads = "image"

    def __init__(
        self, min_entropy: float = 0.75, min_deviation: float = 12.0, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.min_entropy, self.min_deviation = min_entropy, min_deviation

    def compute_stats_single(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Add the statistics. ValueError for a row without exactly one image, and for an unreadable one."""
        (path,) = sample[self.image_key]
        picture = rgb(opened(path, draft=("L", (SIDE, SIDE)))).convert("L")
        greys = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
        shares = np.bincount(greys.ravel() // (256 // LEVELS)) / greys.size
        shares = shares[shares > 0]
        sample[Fields.stats]["image_entropy"] = [round(abs(float(shares @ np.log2(shares))), 3)]
        sample[Fields.stats]["image_deviation"] = [round(float(greys.std()), 1)]
        return sample

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        (entropy,), (deviation,) = (
            sample[Fields.stats][name] for name in ("image_entropy", "image_deviation")
        )
        return entropy >= self.min_entropy or deviation >= self.min_deviation
