"""Every question with a small picture, what people answered and what each experiment answered: the values
that the page's answer browser reads.

Texts of others go into JSON as they are; the page (overview.html.j2) shows them as text alone.
"""

import base64
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.base import Files
from toolkit.benchmarks.questions import Load, Question
from toolkit.contest.experiment import Experiment
from toolkit.errors import UserError
from toolkit.files import read_jsonl

SIDE = 96  # pixels of a picture's longer side
QUALITY = 50  # of its WebP: a photograph takes some 1,000 bytes
PICTURES = 8_000_000  # bytes of all pictures, 4/3 of it in the page
LETTERS = "ABCDEFGHIJKL"


def browsed(experiments: list[Experiment], files: Mapping[str, Files], beside: Path) -> dict[str, Any]:
    """The answers of all experiments, the baseline's first. files: of each benchmark. beside: the page's
    folder.

    `images` are [place in `pictures` or -1, path of the file from the page or ""]; `questions` are
    [benchmark, text, image, right answers, part, score of each experiment, answers of each experiment].
    UserError for answers that do not belong to the questions.
    """
    benchmarks, questions, pictures = [], [], Pictures()
    images: list[tuple[int, str]] = []
    places: dict[tuple[str, str], int] = {}  # in `images`
    for name, paths in files.items():
        benchmark, record = BENCHMARKS[name], experiments[0].record(name)
        asked = benchmark.questions(paths, record.settings.get("prompt"))
        notes = []
        try:
            notes += pictures.take(name, asked, benchmark.load(paths, asked))
        except UserError as error:
            notes.append(f"No pictures of {benchmark.title}: {error}.")
        ending = common_ending(asked)
        benchmarks.append({"title": benchmark.title, "ending": ending, "notes": notes})
        folder = os.path.relpath(paths[benchmark.images], beside) if benchmark.images else None
        texts = [answered(experiment, name, asked) for experiment in experiments]
        scores = [experiment.json(experiment.score(name))["scores"] for experiment in experiments]
        for key, reference in benchmark.references(paths, asked).items():
            first = asked[reference.places[0]]
            if (name, first.image) not in places:
                places[name, first.image] = len(images)
                path = f"{folder}/{first.image}" if folder else ""
                images.append((pictures.places.get((name, first.image), -1), path))
            if any(key not in values for values in scores):
                raise UserError(f"a score.json of {name} lacks the question {key}: evaluate {name} again")
            questions.append(
                [
                    len(benchmarks) - 1,
                    first.message.removesuffix(f"\n{ending}"),
                    places[name, first.image],
                    counted(reference.right),
                    reference.part,
                    [round(values[key], 4) for values in scores],
                    [counted(own[place] for place in reference.places) for own in texts],
                ]
            )
    return {
        "experiments": [experiment.name for experiment in experiments],
        "benchmarks": benchmarks,
        "pictures": pictures.encoded,
        "images": images,
        "questions": questions,
    }


def answered(experiment: Experiment, benchmark: str, asked: list[Question]) -> list[str]:
    """An experiment's answers in the order of the questions; a letter becomes the option that it stood for,
    since options rotate. UserError for a file that the record does not list."""
    file = experiment.answers[benchmark]
    path, record = experiment.path(file), experiment.record(benchmark)
    record.output(path, "answers")
    record.output(experiment.path(experiment.score(benchmark)), "score")
    rows = list(read_jsonl(path))
    if len(rows) != len(asked):
        raise UserError(
            f"{file} has {len(rows)} answers to {len(asked)} questions: evaluate {benchmark} again"
        )
    options = (dict(zip(LETTERS, question.tail.get("options", ()), strict=False)) for question in asked)
    return [own.get(row["text"], row["text"]) for row, own in zip(rows, options, strict=True)]


def counted(texts: Iterable[str]) -> list[str | list[Any]]:
    """The distinct texts, the most frequent first; [text, times] where it comes more than once."""
    return [text if times == 1 else [text, times] for text, times in Counter(texts).most_common()]


def common_ending(asked: list[Question]) -> str:
    """The last line of every question, empty where they differ."""
    endings = {question.message.rpartition("\n")[2] for question in asked}
    return endings.pop() if len(endings) == 1 and len(asked) > 1 else ""


class Pictures:
    """Small copies of images, each once. encoded: WebP in base64. places: in `encoded`, by benchmark and
    image."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.places: dict[tuple[str, str], int] = {}
        self._known: dict[bytes, int] = {}
        self._bytes = 0

    def take(self, benchmark: str, asked: list[Question], load: Load) -> list[str]:
        """Add the images of these questions; return a sentence on those that are not shown."""
        distinct = {question.image: question for question in asked}
        unreadable = beyond = 0
        with ThreadPoolExecutor() as pool:
            contents = pool.map(lambda question: small(load, question), distinct.values())
            for image, content in zip(distinct, contents, strict=True):
                if content is None:
                    unreadable += 1
                elif content not in self._known and self._bytes + len(content) > PICTURES:
                    beyond += 1
                else:
                    if content not in self._known:
                        self._known[content] = len(self.encoded)
                        self.encoded.append(base64.b64encode(content).decode())
                        self._bytes += len(content)
                    self.places[benchmark, image] = self._known[content]
        title = BENCHMARKS[benchmark].title
        notes = [f"{unreadable:,} images of {title} cannot be read."] if unreadable else []
        if beyond:
            notes.append(
                f"{beyond:,} images of {title} are left out: this page holds {PICTURES:,} bytes of them."
            )
        return notes


def small(load: Load, question: Question) -> bytes | None:
    """The image as a small WebP; None for one that cannot be read."""
    try:
        image = load(question, ("RGB", (2 * SIDE, 2 * SIDE)))
    except UserError:
        return None
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=QUALITY, method=6)
    return content.getvalue()
