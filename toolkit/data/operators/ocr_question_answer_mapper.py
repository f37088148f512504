"""Questions about the text in an image, and their answers said in another row, in the form of
question_answer_mapper.

    - ocr_mapper:
        hf_ocr: "{ocr}"
    - ocr_question_answer_mapper:
        most: 2
        form: question

makes of `a shop window with a sign`

    a shop window with a sign; what does the sign read? OPEN; which word can be read, STOP, OPEN or EXIT? OPEN

and with `form: statement` `…; the sign reads OPEN; the word OPEN can be read, STOP and EXIT cannot`. Answers
come from confident lines alone. Where several lines stand, a question says which is meant (`the text at the
top left`), and none is asked about a place with two; lines that were hardly readable count there too.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from data_juicer.ops.base_op import OPERATORS, Mapper
from pydantic import PositiveInt

from toolkit.data.augment import generator, with_generated
from toolkit.data.ocr import CONFIDENT, Confidence, Line, confident, lines_of
from toolkit.data.phrases import CARRIER, FORMS, Answer, joined
from toolkit.data.samples import caption_of, text_of

NAME = "ocr_question_answer_mapper"
# Words of signs and labels, which are put beside the right one.
WORDS = tuple(
    """
    bar sale stop exit taxi bank milk open tea wine park road north south hotel pizza fresh beach photo music
    london police coffee street school garden closed market summer parking station welcome library fashion
    original hospital birthday discount chocolate restaurant collection university photography
    """.split()  # noqa: SIM905
)
WHOLE = re.compile(r"(?<!\S)[^\W\d_]{3,}(?=[.,:;!?]*(?!\S))")  # no part of an address


def readings(caption: str, lines: Sequence[Line], confidence: float) -> list[Answer]:
    """What each confident line reads whose place tells it from all others."""
    places = Counter(line.place for line in lines)
    unquoted = re.sub(r'"[^"]*"', "", caption.lower())
    carriers = set(re.findall(rf"\b({CARRIER})\b", unquoted))
    pairs = []
    for line in confident(lines, confidence):
        if len(lines) == 1:
            on = f"the {carriers.pop()}" if len(carriers) == 1 else "the text"
        elif places[line.place] == 1:
            on = f"the text {line.place}"
        else:
            continue
        pairs.append(Answer(f"what does {on} read?", line.text, f"{on} reads {line.text}"))
    return pairs


def choices(lines: Sequence[Line], confidence: float, random: np.random.Generator) -> list[Answer]:
    """For each confident line: which of three words, two of them of WORDS, can be read; the two are of about
    the same length, and in no line at all."""
    read = " ".join(line.text.lower() for line in lines)
    pairs = []
    for line in confident(lines, confidence):
        words = WHOLE.findall(line.text)
        absent = [other for other in random.permutation(WORDS).tolist() if other not in read]
        if not words or len(absent) < 2:
            continue
        word = words[random.integers(len(words))]
        near = sorted(absent, key=lambda other: abs(len(other) - len(word)))[:2]
        style = str.upper if word.isupper() else str.title if word.istitle() else str.lower
        others = [style(other) for other in near]
        first, second, third = random.permutation([word, *others]).tolist()
        pairs.append(
            Answer(
                f"which word can be read, {first}, {second} or {third}?",
                word,
                f"the word {word} can be read, {others[0]} and {others[1]} cannot",
            )
        )
    return pairs


@OPERATORS.register_module(NAME)
class OcrQuestionAnswerMapper(Mapper):
    """Add a row whose caption also answers up to `most` questions about the text in the image; an image
    without makes no row.

    Answers are lines of at least `confidence`, or words of theirs. Which questions are asked and what is put
    beside the right word follows from caption, lines and `seed`. `form` is `statement` or `question`.
    `keep_original_sample`: keep the row as it was beside the new one. Needs ocr_mapper before it.
    """

    _batched_op = True
    _reads = "text"  # of the image only what ocr_mapper noted

    def __init__(
        self,
        most: PositiveInt = 2,
        form: str = "statement",
        confidence: Confidence = CONFIDENT,
        seed: int = 0,
        keep_original_sample: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if form not in FORMS:
            raise ValueError(f"form is {form}, one of {', '.join(FORMS)} is expected")
        self.most, self.form, self.confidence, self.seed = most, form, confidence, seed
        self.keep_original_sample = keep_original_sample

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Add a row after each row whose image answers a question."""
        generated = []
        for text, lines in zip(samples[self.text_key], lines_of(samples), strict=True):
            caption = caption_of(text)
            other = joined(caption, self.choose(caption, lines), self.form)
            generated.append([] if other == caption.rstrip(" .;") else [{self.text_key: text_of(other)}])
        return with_generated(samples, generated, self.keep_original_sample)

    def choose(self, caption: str, lines: Sequence[Line]) -> list[Answer]:
        """At most `most` of the answers, in their order."""
        random = generator(self.seed, NAME, caption, *(line.text for line in lines))
        pairs = readings(caption, lines, self.confidence) + choices(lines, self.confidence, random)
        return [pairs[number] for number in sorted(random.permutation(len(pairs))[: self.most])]
