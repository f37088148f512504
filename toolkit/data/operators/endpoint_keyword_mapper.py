"""Things that an image shows, named by a vision language model behind an OpenAI-compatible endpoint.

    - endpoint_keyword_mapper:
        model: gpt-4o-mini
        responses: solution/responses/keywords.jsonl
        price_input: 0.15     # per million tokens
        price_output: 0.60
        max_cost: 2.0
        template: "{caption}; {keywords}"

keyword_mapper.py finds keywords by rules and for nothing, but only those of the caption.
"""

from typing import Any

from data_juicer.ops.base_op import OPERATORS

from toolkit.data.endpoint.mapper import EndpointMapper, Unusable, one_line

from .endpoint_question_answer_mapper import parsed
from .keyword_mapper import check_template

NAME = "endpoint_keyword_mapper"
LONGEST = 4  # words of a keyword


@OPERATORS.register_module(NAME)
class EndpointKeywordMapper(EndpointMapper):
    """Add a row whose caption is `template` filled with the caption and up to `top_k` things that the image
    shows.

    Other arguments: see EndpointMapper; `max_words` is about all of the caption.
    """

    LOOKS = True
    PROMPT = (
        "Name up to {top_k} things that this image shows, the most important first, in one or two words "
        "each; words that can be read in it"
        ' count too. Its caption is: {caption}\nAnswer with JSON alone: ["...", "..."]'
    )

    def __init__(
        self, top_k: int = 5, template: str = "{caption}; {keywords}", *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, it must be at least 1")
        check_template(template)
        self.top_k, self.template = top_k, template

    def prompt_for(self, caption: str) -> str:
        """The prompt, with the number of things."""
        return self.fill(caption=caption, top_k=self.top_k)

    def caption(self, caption: str, answer: str) -> str:
        """The template with keywords that are new to each other."""
        value = parsed(answer)
        if not isinstance(value, list) or not value or not all(isinstance(keyword, str) for keyword in value):
            raise Unusable("not a list of texts")
        words = dict.fromkeys(one_line(keyword, LONGEST).lower() for keyword in value[: self.top_k])
        return one_line(self.template.format(caption=caption, keywords=", ".join(words)), self.max_words)
