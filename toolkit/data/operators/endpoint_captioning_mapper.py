"""Captions by a vision language model behind an OpenAI-compatible endpoint, in the manner of GPT-4V.

    - endpoint_captioning_mapper:
        model: gpt-4o-mini
        responses: solution/responses/captions.jsonl
        price_input: 0.15     # per million tokens
        price_output: 0.60
        max_cost: 2.0
        max_words: 20

The prompt asks for one short line: several of the contest's teams found that long captions hurt a model of
this size.
"""

from data_juicer.ops.base_op import OPERATORS

from toolkit.data.endpoint.mapper import EndpointMapper, one_line

NAME = "endpoint_captioning_mapper"


@OPERATORS.register_module(NAME)
class EndpointCaptioningMapper(EndpointMapper):
    """Add a row with the model's caption of the image. Arguments: see EndpointMapper."""

    LOOKS = True
    PROMPT = (
        "Write one caption for this image, in English, of at most 20 words: what it shows, colours, how "
        "many there are, where they stand. If words can be read in it, end with: the sign reads, and those "
        "words. Answer with the caption alone."
    )

    def caption(self, caption: str, answer: str) -> str:
        """The answer as one line."""
        return one_line(answer, self.max_words)
