"""What a benchmark is to the rest of the toolkit: evaluation, comparison, checks and bundle know no benchmark
by name."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.benchmarks.questions import Load, Question, Reference

# a benchmark's files and folder of images, by their names in `Benchmark.files` and `Benchmark.images`
Files = Mapping[str, Path]


def flag(name: str) -> str:
    """A file's flag on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Bounds:
    """Beyond these, answers cannot come from a model that looks at images. A set of rules may state
    others."""

    distinct: int  # fewest different answers
    top_share: float  # largest share of the most frequent answer, 0 to 1
    empty_share: float = 0.05  # largest share of empty answers, 0 to 1
    # largest share of answers that may stay the same with another question's image, 0 to 1
    same_share: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """One benchmark. It has no state: files come in by name, answers are files in the format of the official
    scripts.

    files: what it is read from, by the names of an evaluation asset's files (toolkit/assets/registry.yaml),
    each with its official place in a folder of the benchmark's own. images: name of the folder of images,
    None where the files hold them; image_folder: its official place. instruction: what ends each question,
    where the files do not say it. answer_file, further_files: where the contest's kit puts answers and what
    is made of them, below the benchmark's folder; they know {model} (name of the finetuning folder) and
    {split}.
    """

    name: str
    title: str
    measure: str  # the title with what is counted
    contest: bool = False  # whether it counts in the contest's score
    max_new_tokens: int  # of an answer, as in the official script
    files: Mapping[str, str]
    images: str | None
    image_folder: str = "."
    answer_file: str
    bounds: Bounds
    further_files: Mapping[str, str] = field(default_factory=dict)
    split: str = ""
    instruction: str | None = None
    head: tuple[str, ...] = ("question_id", "prompt")  # fields of an answer that name its question
    not_scored_with: tuple[str, ...] = ()  # those of `files` that only questions are read from
    answers_in_files: bool = False  # whether a file can hold the answers too, so that it can be scored alone

    @property
    def inputs(self) -> dict[str, str]:
        """All files and the folder of images, by name, each with what the command line says of it."""
        return {**self.files, **({self.images: "folder of the images"} if self.images else {})}

    @property
    def scored_with(self) -> tuple[str, ...]:
        """Names of the files that `score` reads."""
        return tuple(name for name in self.files if name not in self.not_scored_with)

    def official_files(self, folder: Path, answers: Path) -> Files:
        """The files in a folder of the official layout that the answers are for."""
        places = {**self.files, **({self.images: self.image_folder} if self.images else {})}
        return {name: folder / place for name, place in places.items()}

    def outputs(self, model: str, split: str | None = None) -> dict[str, str]:
        """{"answers": path, …} of what is written for a model, relative to the benchmark's folder."""
        paths = {"answers": self.answer_file, **self.further_files}
        return {key: path.format(model=model, split=split or self.split) for key, path in paths.items()}

    def split_of(self, files: Files) -> str:
        """The split that the files are of, as it stands in the paths of `outputs`."""
        return self.split

    @abstractmethod
    def questions(self, files: Files, instruction: str | None = None) -> list[Question]:
        """All questions in order; UserError for files that cannot be asked or scored."""

    @abstractmethod
    def load(self, files: Files, questions: list[Question]) -> Load:
        """A loader of a question's image; UserError for an absent image."""

    @abstractmethod
    def score(self, files: Files, answers: Path | None, complete: bool = True) -> dict[str, Any]:
        """`{accuracy (percent), questions, empty, scores: {question: 0..1}, …}` of an answer file, as the
        official scorer counts.

        UserError unless it answers every question once; if it need not be `complete`, as the official scorer
        does.
        """

    def published(self, files: Files, answers: Path) -> dict[str, Any]:
        """`{score: the figure that papers quote, by default the accuracy, …}` of an answer file, by the
        official rule. UserError for a file that the official scorer would end on, or join with the wrong
        labels."""
        result = self.score(files, answers, complete=False)
        return {"score": result["accuracy"], **result}

    @abstractmethod
    def references(self, files: Files, questions: list[Question]) -> dict[str, Reference]:
        """What each question is judged by, with the keys of `scores`. questions: all, in order."""

    def right_answers(self, files: Files, questions: list[Question]) -> dict[int, str]:
        """The text that scores at each place of `questions` that counts; of several that people gave, the
        most frequent. questions: all, in order."""
        return {
            place: Counter(reference.right).most_common(1)[0][0]
            for reference in self.references(files, questions).values()
            for place in reference.places
        }

    @abstractmethod
    def items(self, files: Files) -> tuple[dict[str, Path | bytes], dict[str, str]]:
        """(image by name, text by name) of what no training row may repeat: a question's image, and its text
        with the right answer."""

    def warnings(self, files: Files) -> Iterator[str]:
        """A sentence for each peculiarity of the files in `scored_with` that the score will not show."""
        yield from ()

    def write_further(self, files: Files, outputs: Files) -> None:  # noqa: B027 - most benchmarks have nothing further
        """Write what the official scripts make of the answers (`further_files`)."""

    def same_further(self, name: str, first: Path, second: Path) -> bool:
        """Whether two files of `further_files` that differ in their bytes hold the same: another version of a
        library may write it otherwise."""
        return False

    def restated(self, outputs: Files) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name in `outputs`, its score) of each output that states the score once more, without the
        benchmark's files."""
        yield from ()

    def unusable(self, rows: list[dict[str, Any]]) -> tuple[int, str] | None:
        """How many answers cannot be right whatever the question, with a phrase; None where any text may
        be."""
        return None

    def question_of(self, row: dict[str, Any], instruction: str | None) -> Question:
        """The question that an answer's line belongs to, without its image; KeyError for a line that lacks a
        field."""
        ending = f"\n{instruction}" if instruction else ""
        return Question({key: row[key] for key in self.head}, f"{row['prompt']}{ending}", "")
