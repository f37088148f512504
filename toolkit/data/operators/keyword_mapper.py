"""Keywords of a caption, found by rules, as another row for the same image: `mug, box, nova`.

No model and no statistics of other rows: a keyword is the last word of a noun phrase
(toolkit/data/phrases.py), the most frequent first, then what can be read in the image. As an answer to `Name
what is shown here` a list of things makes sense, and it is short: several of the contest's teams found that
long captions hurt a model of this size.

    - keyword_mapper:
        top_k: 5
"""

from typing import Any

from data_juicer.ops.base_op import OPERATORS, Mapper

from toolkit.data.augment import with_generated
from toolkit.data.phrases import keywords
from toolkit.data.samples import caption_of, text_of

NAME = "keyword_mapper"
LEAST = 2  # one word alone says too little


def check_template(template: str) -> None:
    """ValueError for a template that names anything but {caption} and {keywords}, or not {keywords}."""
    try:
        filled = template.format(caption="", keywords="\0")
    except (KeyError, IndexError, ValueError):
        filled = ""
    if "\0" not in filled:
        raise ValueError(
            f"template is {template!r}: text with {{keywords}}, and {{caption}} if it shall be there, is "
            "expected"
        )


@OPERATORS.register_module(NAME)
class KeywordMapper(Mapper):
    """Add a row whose caption is `template` filled with the caption and up to `top_k` keywords; fewer than
    two make no row.

    `keep_original_sample`: keep the row as it was beside the new row.
    """

    _batched_op = True
    _reads = "text"

    def __init__(
        self,
        top_k: int = 5,
        template: str = "{keywords}",
        keep_original_sample: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if top_k < LEAST:
            raise ValueError(f"top_k is {top_k}, it must be at least {LEAST}")
        check_template(template)
        self.top_k, self.template, self.keep_original_sample = top_k, template, keep_original_sample

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Add a row after each row with at least two keywords."""
        generated = []
        for text in samples[self.text_key]:
            caption = caption_of(text)
            best = keywords(caption)[: self.top_k]
            other = self.template.format(caption=caption, keywords=", ".join(best))
            generated.append([{self.text_key: text_of(other)}] if len(best) >= LEAST else [])
        return with_generated(samples, generated, self.keep_original_sample)
