"""How much text stands in an image.

    - ocr_mapper:
        hf_ocr: "{ocr}"
    - ocr_filter:
        min_lines: 1
        max_characters: 300

keeps images with text, but no pages.
"""

import sys
from typing import Any

from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields

from toolkit.data.ocr import CONFIDENT, Confidence, confident, lines_of

NAME = "ocr_filter"


@OPERATORS.register_module(NAME)
class OcrFilter(Filter):
    """Keep rows whose image has between `min_lines` and `max_lines` lines of text with between
    `min_characters` and `max_characters` characters in all.

    The statistics, `ocr_lines` and `ocr_characters`, count lines of at least `confidence` that a caption can
    quote, without blanks. Needs ocr_mapper before it.
    """

    _batched_op = True
    _reads = "text"  # of the image only what ocr_mapper noted

    def __init__(
        self,
        min_lines: int = 0,
        max_lines: int = sys.maxsize,
        min_characters: int = 0,
        max_characters: int = sys.maxsize,
        confidence: Confidence = CONFIDENT,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.min_lines, self.max_lines = min_lines, max_lines
        self.min_characters, self.max_characters = min_characters, max_characters
        self.confidence = confidence

    def compute_stats_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Add the statistics to any number of rows."""
        for statistics, lines in zip(samples[Fields.stats], lines_of(samples), strict=True):
            texts = [line.text for line in confident(lines, self.confidence)]
            statistics["ocr_lines"] = len(texts)
            statistics["ocr_characters"] = sum(len(text.replace(" ", "")) for text in texts)
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        statistics = sample[Fields.stats]
        return self.get_keep_boolean(
            statistics["ocr_lines"], self.min_lines, self.max_lines
        ) and self.get_keep_boolean(statistics["ocr_characters"], self.min_characters, self.max_characters)
