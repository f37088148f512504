"""What the operators that ask a language model share: their arguments, what of an answer can be used, and the
count of what cannot.

    - endpoint_rewriting_mapper:
        model: gpt-4o-mini
        responses: solution/responses/rewriting.jsonl
        price_input: 0.15     # per million tokens
        price_output: 0.60
        max_cost: 2.0

Without network and key the same data comes from `responses`. Name the model in the recipe then: it is part of
each request.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_juicer.ops.base_op import Mapper

from toolkit.data.augment import with_generated
from toolkit.data.endpoint import Endpoint, message
from toolkit.data.endpoint.responses import Answer
from toolkit.data.samples import END_TOKEN, IMAGE_TOKEN, LLAVA_TOKEN, caption_of, text_of

TOKENS = (IMAGE_TOKEN, END_TOKEN, LLAVA_TOKEN, "<|", "|>", "<__dj__")
APOLOGY = re.compile(
    r"(i'?m sorry|sorry|i apologi|i can(no|')t|i am (unable|not able)|i'm (unable|not able)|unable to|as an "
    r"ai)\b",
    re.I,
)


class Unusable(Exception):
    """Why an answer makes no row."""


def one_line(text: str, max_words: int) -> str:
    """An answer as a caption: one line without quotes around it and full stop. Unusable for everything that
    no caption may be."""
    line = " ".join(text.replace("\u2019", "'").split()).strip("\"'` ").removesuffix(".").strip()
    if not re.search(r"\w", line):
        raise Unusable("empty")
    if any(token in line for token in TOKENS):
        raise Unusable("with a token of the format")
    if APOLOGY.match(line):
        raise Unusable("an apology")
    if len(line.split()) > max_words:
        raise Unusable(f"longer than {max_words} words")
    return line


class EndpointMapper(Mapper):
    """Base of the operators that ask an OpenAI-compatible endpoint about each row and make another row of the
    answer.

    `model`: as the endpoint names it, else OPENAI_MODEL. `responses`: the file of answers, a relative path.
    `price_input`, `price_output`: per million tokens; `max_cost`: what a run may cost at most, by an estimate
    that is printed before anything is sent. `parameters`: of each request, with `max_tokens` or
    `max_completion_tokens`. `prompt`: in place of the operator's own; {caption} stands for the row's.
    `max_words`: a longer caption is not used. The rest is explained at toolkit.data.endpoint.Endpoint.

    An answer that cannot be used leaves its row as it is; how many did, and why, is printed and in
    `unusable`.
    """

    _batched_op = True
    _paid = True
    PROMPT = ""
    LOOKS = False  # whether the image is sent

    def __init__(
        self,
        model: str | None = None,
        responses: str | None = None,
        price_input: float | None = None,
        price_output: float | None = None,
        max_cost: float | None = None,
        prompt: str | None = None,
        parameters: dict | None = None,
        max_words: int = 30,
        requests_per_minute: float = 60.0,
        concurrency: int = 4,
        timeout: float = 60.0,
        retries: int = 5,
        keep_original_sample: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model = model or os.environ.get("OPENAI_MODEL")
        if not self.model:
            raise ValueError("model is not given, and neither is the variable OPENAI_MODEL")
        if responses is None or not responses.endswith(".jsonl") or not _inside(responses):
            raise ValueError("responses is not a relative path like solution/responses/NAME.jsonl")
        costs = {"price_input": price_input, "price_output": price_output, "max_cost": max_cost}
        given = {name: value for name, value in costs.items() if value is not None and value >= 0}
        if unset := [name for name in costs if name not in given]:
            raise ValueError(
                f"{', '.join(unset)}: give prices per million tokens and the most that a run may cost"
            )
        self.parameters = {"temperature": 0, "max_tokens": 200} if parameters is None else parameters
        if not (self.parameters.get("max_tokens") or self.parameters.get("max_completion_tokens")):
            raise ValueError(
                "parameters has neither max_tokens nor max_completion_tokens, which the cost depends on"
            )
        positive = {
            "max_words": max_words,
            "requests_per_minute": requests_per_minute,
            "concurrency": concurrency,
            "timeout": timeout,
        }
        for name, value in positive.items():
            if value <= 0:
                raise ValueError(f"{name} is {value}, it must be more than 0")
        self.prompt, self.max_words, self.keep_original_sample = (
            prompt or self.PROMPT,
            max_words,
            keep_original_sample,
        )
        self.endpoint = Endpoint(
            self._name,
            Path(responses),
            given["price_input"],
            given["price_output"],
            given["max_cost"],
            requests_per_minute,
            concurrency,
            timeout,
            retries,
        )
        self.unusable: Counter[str] = Counter()

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Ask about all rows and add a row after each whose answer can be used. UserError as from
        Endpoint.complete."""
        captions = [caption_of(text) for text in samples[self.text_key]]
        images = [Path(paths[0]) for paths in samples[self.image_key]]

        def build(number: int) -> dict[str, Any]:
            user_message = message(self.prompt_for(captions[number]), images[number] if self.LOOKS else None)
            return {**self.parameters, "model": self.model, "messages": [user_message]}

        answers = self.endpoint.complete(len(captions), build)
        generated = [
            self._new_rows(caption, answer) for caption, answer in zip(captions, answers, strict=True)
        ]
        print(self._summary(generated), file=sys.stderr, flush=True)
        return with_generated(samples, generated, self.keep_original_sample)

    def prompt_for(self, caption: str) -> str:
        """The prompt about a caption."""
        return self.fill(caption=caption)

    def fill(self, **fields: object) -> str:
        """The prompt with its fields filled in; braces of other use stay."""
        return re.sub(r"\{(\w+)\}", lambda match: str(fields.get(match.group(1), match.group())), self.prompt)

    def caption(self, caption: str, answer: str) -> str:
        """The new row's caption, from the row's own and the answer; Unusable with the reason where it makes
        none."""
        raise NotImplementedError

    def _new_rows(self, caption: str, answer: Answer) -> list[dict[str, str]]:
        try:
            if answer.text is None:
                raise Unusable(answer.problem or "empty")
            other = self.caption(caption, answer.text)
            if other == caption:
                raise Unusable("the same caption")
        except Unusable as reason:
            self.unusable[str(reason)] += 1
            return []
        return [{self.text_key: text_of(other)}]

    def _summary(self, generated: Sequence[list]) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.unusable.items()))
        return (
            f"{self._name}: {sum(map(bool, generated))} of {len(generated)} answers "
            f"used{f'; not used so far: {reasons}' if reasons else ''}"
        )


def _inside(path: str) -> bool:
    return (
        not PurePosixPath(path).is_absolute()
        and ".." not in PurePosixPath(path).parts
        and not path.startswith("~")
    )
