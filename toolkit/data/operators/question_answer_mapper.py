"""Questions that a caption answers, found by rules, and their answers said in another row for the same image.

A row has no question of its own: the converter takes it from the seed by the row's id, always one such as
`What is in the photo?`. So the answers must make a sensible caption. `a red mug left of a blue box, sign
reads nova` becomes, as statements,

    a red mug left of a blue box, sign reads nova; the mug is red; the blue box is right of the red mug

which says in so many words what questions will ask for. What can be read in the image comes first, in one
form whatever the caption's: the benchmark TextVQA asks for nothing else. With `form: question` the question
is said too, `…; what colour is the mug? red`.

    - question_answer_mapper:
        most: 2
"""

from typing import Any

from data_juicer.ops.base_op import OPERATORS, Mapper

from toolkit.data.augment import generator, with_generated
from toolkit.data.phrases import FORMS, Answer, answers, joined
from toolkit.data.samples import caption_of, text_of

NAME = "question_answer_mapper"


@OPERATORS.register_module(NAME)
class QuestionAnswerMapper(Mapper):
    """Add a row whose caption also answers up to `most` questions; a caption without an answer makes no row.

    Answers about what can be read are taken first; which of the others are, follows from the caption and
    `seed`. `form` is `statement` or `question`. `keep_original_sample`: keep the row as it was beside the new
    one.
    """

    _batched_op = True
    _reads = "text"

    def __init__(
        self,
        most: int = 2,
        form: str = "statement",
        seed: int = 0,
        keep_original_sample: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if most < 1:
            raise ValueError(f"most is {most}, it must be at least 1")
        if form not in FORMS:
            raise ValueError(f"form is {form}, one of {', '.join(FORMS)} is expected")
        self.most, self.form, self.seed, self.keep_original_sample = most, form, seed, keep_original_sample

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Add a row after each row whose caption answers a question."""
        generated = []
        for text in samples[self.text_key]:
            caption = caption_of(text)
            other = joined(caption, self.choose(caption), self.form)
            generated.append([] if other == caption.rstrip(" .;") else [{self.text_key: text_of(other)}])
        return with_generated(samples, generated, self.keep_original_sample)

    def choose(self, caption: str) -> list[Answer]:
        """At most `most` of the answers, in their order."""
        pairs = answers(caption)
        order = generator(self.seed, NAME, caption).permutation(len(pairs))
        read = [number for number, answer in enumerate(pairs) if answer.question.endswith("read?")]
        return [
            pairs[number]
            for number in sorted([*read, *(number for number in order if number not in read)][: self.most])
        ]
