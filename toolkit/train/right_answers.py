"""A benchmark's questions with their right answers, as samples that a loss can be taken of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.benchmarks import BENCHMARKS, in_folder
from toolkit.benchmarks.base import Benchmark, Files
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import pixels
from toolkit.mgm.text import IMAGE, encode
from toolkit.scales import Scale
from toolkit.train.dataset import Sample


@dataclass(frozen=True)
class RightAnswers:
    """Questions that count, answered as the benchmark's files say; iterating makes the samples one by one."""

    benchmark: Benchmark
    files: Files
    tokenizer: PreTrainedTokenizerBase
    config: MGMConfig
    template: str

    def __iter__(self) -> Iterator[Sample]:
        questions = self.benchmark.questions(self.files)
        load = self.benchmark.load(self.files, questions)
        answers = self.benchmark.right_answers(self.files, questions)
        for place, answer in sorted(answers.items()):
            question = questions[place]
            turns = [
                {"from": "human", "value": f"{IMAGE}\n{question.message}"},
                {"from": "gpt", "value": answer},
            ]
            ids, labels = encode(turns, self.tokenizer, self.template, has_image=True)
            yield Sample(ids, labels, pixels(load(question), self.config), place)


def right_answers(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: MGMConfig,
    scale: Scale,
) -> dict[str, RightAnswers]:
    """By benchmark what `folder/{benchmark}` asks in its official files, where there is such a folder; with
    images as finetuning has them. UserError where there is none at all."""
    shown = replace(config, image_aspect_ratio=scale.finetune["open"].image_aspect_ratio)
    return {
        name: RightAnswers(BENCHMARKS[name], files, tokenizer, shown, scale.template)
        for name, files in in_folder(folder).items()
    }
