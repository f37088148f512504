"""Questions that a caption answers, by a language model behind an OpenAI-compatible endpoint; the image is
not sent.

    - endpoint_question_answer_mapper:
        model: gpt-4o-mini
        responses: solution/responses/questions.jsonl
        price_input: 0.15     # per million tokens
        price_output: 0.60
        max_cost: 2.0

How answers become a caption, and why, is told in question_answer_mapper.py, which finds them by rules and for
nothing.
"""

import json
import re
from typing import Any

from data_juicer.ops.base_op import OPERATORS

from toolkit.data.endpoint.mapper import EndpointMapper, Unusable, one_line
from toolkit.data.phrases import Answer, readings

from .question_answer_mapper import FORMS, joined

NAME = "endpoint_question_answer_mapper"
LONGEST = 6  # words of an answer


def parsed(answer: str) -> Any:
    """The JSON of an answer, also inside a fence of Markdown; Unusable for none."""
    fenced = re.search(r"```(?:json)?\s*(.*?)```", answer, re.S)
    try:
        return json.loads(fenced.group(1) if fenced else answer)
    except (ValueError, RecursionError):
        raise Unusable("not JSON") from None


@OPERATORS.register_module(NAME)
class EndpointQuestionAnswerMapper(EndpointMapper):
    """Add a row whose caption also answers up to `most` questions; of an answer each word must be in the
    caption. `form`: `statement` or `question`. Other arguments: see EndpointMapper; `max_words` is about all
    of the caption.
    """

    _reads = "text"
    PROMPT = (
        "Below is the caption of an image{read}. Write up to {most} short questions that the caption "
        "answers, about words that can be read,"
        " colours, numbers and places first. Give each a short answer in words of the caption, and the "
        "answer as a short statement. Answer"
        ' with JSON alone: [{"question": "...", "answer": "...", "statement": "..."}]\n\n{caption}'
    )

    def __init__(self, most: int = 2, form: str = "statement", *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if most < 1:
            raise ValueError(f"most is {most}, it must be at least 1")
        if form not in FORMS:
            raise ValueError(f"form is {form}, one of {', '.join(FORMS)} is expected")
        self.most, self.form = most, form

    def prompt_for(self, caption: str) -> str:
        """The prompt, with the words that the caption says can be read in the image."""
        words = ", ".join(reading.words for reading in readings(caption))
        read = f" in which these words can be read: {words}" if words else ""
        return self.fill(caption=caption, most=self.most, read=read)

    def caption(self, caption: str, answer: str) -> str:
        """The caption with the answers that it supports."""
        value = parsed(answer)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise Unusable("not a list of questions and answers")
        caption_words = set(re.findall(r"\w+", caption.lower()))
        pairs = []
        for item in value[: self.most]:
            parts = [item.get(name) for name in ("question", "answer", "statement")]
            if not all(isinstance(part, str) for part in parts):
                raise Unusable("not a list of questions and answers")
            question, reply, statement = (one_line(part, self.max_words) for part in parts)
            words = re.findall(r"\w+", reply.lower())
            if (
                len(words) <= LONGEST
                and caption_words.issuperset(words)
                and reply.lower() in statement.lower()
            ):
                pairs.append(Answer(question, reply, statement))
        if not pairs:
            raise Unusable("not supported by the caption")
        return one_line(joined(caption, pairs, self.form), self.max_words)
