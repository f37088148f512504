"""Captions in other words, by a language model behind an OpenAI-compatible endpoint; the image is not sent.

- endpoint_rewriting_mapper:
    model: gpt-4o-mini
    responses: solution/responses/rewriting.jsonl
    price_input: 0.15     # per million tokens
    price_output: 0.60
    max_cost: 2.0
"""

from data_juicer.ops.base_op import OPERATORS

from toolkit.data.endpoint.mapper import EndpointMapper, Unusable, one_line
from toolkit.data.phrases import readings

NAME = "endpoint_rewriting_mapper"


@OPERATORS.register_module(NAME)
class EndpointRewritingMapper(EndpointMapper):
    """Add a row whose caption says the same in other words; not used is a caption that loses words which can
    be read in the image.

    Arguments: see EndpointMapper.
    """

    _reads = "text"
    PROMPT = (
        "Say this image caption in other words, about as long. Add nothing, leave nothing out, and keep "
        "names, numbers, colours and quoted"
        " or written words as they are. Answer with the caption alone.\n\n{caption}"
    )

    def caption(self, caption: str, answer: str) -> str:
        """The answer as one line."""
        line = one_line(answer, self.max_words)
        if any(reading.words.lower() not in line.lower() for reading in readings(caption)):
            raise Unusable("without the words that can be read")
        return line
