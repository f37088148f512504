"""A benchmark's questions with their right answers, as samples that a loss can be taken of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.base import Benchmark, Files
from toolkit.errors import UserError
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import pixels
from toolkit.mgm.text import IMAGE, encode
from toolkit.scales import Scale
from toolkit.train.dataset import Sample


@dataclass(frozen=True)
class Asked:
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


def questions(
    folder: Path,
    benchmarks: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: MGMConfig,
    scale: Scale,
) -> dict[str, Asked]:
    """By benchmark what `folder/{benchmark}` asks in its official files, with images as finetuning has them.
    UserError where there is no such folder."""
    shown, asked = replace(config, image_aspect_ratio=scale.finetune["open"].image_aspect_ratio), {}
    for name in benchmarks:
        own = folder / name
        if not own.is_dir():
            raise UserError(f"{own} does not exist: put the official files of {name} there")
        files = BENCHMARKS[name].official_files(own, own)
        asked[name] = Asked(BENCHMARKS[name], files, tokenizer, shown, scale.template)
    return asked
