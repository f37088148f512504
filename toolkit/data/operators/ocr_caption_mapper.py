"""What stands in the image, quoted in the caption.

    - ocr_mapper:
        hf_ocr: "{ocr}"
    - ocr_caption_mapper:
        most: 4

makes of `a cup of coffee on a table`

    a cup of coffee on a table; the text reads "HAPPY HOUR" and "since 1978"

which question_answer_mapper and keyword_mapper understand.
"""

from typing import Any

from data_juicer.ops.base_op import OPERATORS, Mapper
from pydantic import PositiveInt

from toolkit.data.augment import with_generated
from toolkit.data.ocr import CONFIDENT, Confidence, Line, confident, lines_of
from toolkit.data.samples import caption_of, text_of

NAME = "ocr_caption_mapper"


def quoted(caption: str, lines: list[Line], most: int) -> str:
    """The caption with the `most` largest of the lines that it does not say already, in their order; as it is
    where there is none."""
    new = [line for line in lines if line.text.lower() not in caption.lower()]
    largest = sorted(new, key=lambda line: -line.area)[:most]
    texts = ['"{}"'.format(line.text.replace('"', "'")) for line in new if line in largest]
    if not texts:
        return caption
    listed = " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
    return f"{caption.rstrip(' .;')}; the text reads {listed}"


@OPERATORS.register_module(NAME)
class OcrCaptionMapper(Mapper):
    """Add a row whose caption also quotes the `most` largest lines of text in the image, from top to bottom;
    an image without makes no row.

    Quoted are lines of at least `confidence`. `keep_original_sample`: keep the row as it was beside the new
    one. Needs ocr_mapper before it.
    """

    _batched_op = True
    _reads = "text"  # of the image only what ocr_mapper noted

    def __init__(
        self,
        most: PositiveInt = 4,
        confidence: Confidence = CONFIDENT,
        keep_original_sample: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.most, self.confidence, self.keep_original_sample = most, confidence, keep_original_sample

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Add a row after each row with text in its image."""
        generated = []
        for text, lines in zip(samples[self.text_key], lines_of(samples), strict=True):
            caption = caption_of(text)
            other = quoted(caption, confident(lines, self.confidence), self.most)
            generated.append([] if other == caption else [{self.text_key: text_of(other)}])
        return with_generated(samples, generated, self.keep_original_sample)
