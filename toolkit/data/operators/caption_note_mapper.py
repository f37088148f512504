"""The caption as it is now, noted beside its row: caption_agreement_filter compares a later one with it.

- caption_note_mapper:
- synonym_replacement_mapper:
- caption_agreement_filter:
    hf_sentences: "{sentences}"
    min_cosine: 0.85
"""

from data_juicer.ops.base_op import OPERATORS, TAGGING_OPS, Mapper
from data_juicer.utils.constant import Fields

from toolkit.data.sentences import NOTED

NAME = "caption_note_mapper"


@TAGGING_OPS.register_module(NAME)
@OPERATORS.register_module(NAME)
class CaptionNoteMapper(Mapper):
    """Note every row's text in its meta as `caption`, in place of what was noted there before. Text and image
    stay."""

    _batched_op = True
    _reads = "text"

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Note the texts of any number of rows."""
        for text, meta in zip(samples[self.text_key], samples[Fields.meta], strict=True):
            meta[NOTED] = text
        return samples
