"""LLaVA samples as model inputs."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from toolkit.counted import counted
from toolkit.data.samples import image_file
from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.images import Unreadable, opened
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import pixels
from toolkit.mgm.text import IMAGE, encode


def problem(row: Any) -> str | None:
    """What makes a row of a LLaVA json unfit for training, None when nothing does."""
    if not isinstance(row, dict):
        return "not an object"
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return "no conversations"
    if not all(
        isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
        for turn in turns
    ):
        return "a turn without the texts `from` and `value`"
    if not any(turn["value"].split() for turn in turns):
        return "no word in any turn"
    if "image" in row and not isinstance(row["image"], str):
        return "`image` is not a path"
    if "image" in row and sum(IMAGE in turn["value"] for turn in turns) > 1:
        return f"several turns with {IMAGE} and one image"
    return None


@dataclass(frozen=True)
class Sample:
    """One row before it meets the model: token ids with IMAGE_TOKEN_INDEX, labels as long, uint8 [S, S, 3];
    None for a row of text. index: its place among the rows, -1 for a sample of none."""

    input_ids: list[int]
    labels: list[int]
    pixels: np.ndarray | None
    index: int = -1


@dataclass(frozen=True)
class Reader:
    """Turns rows into samples; small enough to be sent to another process, unlike the rows."""

    images: Path
    samples: Path
    tokenizer: PreTrainedTokenizerBase
    config: MGMConfig
    template: str

    def __call__(self, row: dict[str, Any]) -> Sample:
        """The sample of a row; UserError with its id when it cannot be tokenised or its image cannot be
        read."""
        has_image = "image" in row
        try:
            ids, labels = encode(row["conversations"], self.tokenizer, self.template, has_image=has_image)
            return Sample(ids, labels, self.load(row["image"]) if has_image else None)
        except UserError as error:
            raise UserError(f"sample {row.get('id')!r}: {error}") from None

    def load(self, name: str) -> np.ndarray:
        """The pixels of one image; UserError for whatever is wrong with the file."""
        try:
            return pixels(opened(image_file(name, self.images, self.samples)), self.config)
        except Unreadable as error:
            raise UserError(f"the image {name} cannot be read: {error}") from None
        except OSError as error:
            raise UserError(f"the image {name} cannot be read: {error.strerror}") from None


class Conversations:
    """Rows of a LLaVA json: `{id, conversations, image?}`; `image` is a path below `images`, or one of
    `synthetic_images/…` beside the json. Items are samples.

    A bad image ends the training with a sentence that names it; the official code would train on another
    sample in silence.
    """

    def __init__(
        self,
        samples: Path | str,
        images: Path | str,
        tokenizer: PreTrainedTokenizerBase,
        config: MGMConfig,
        template: str,
    ) -> None:
        self.rows: list[dict[str, Any]] = read_json(samples)
        self.read = Reader(Path(images), Path(samples), tokenizer, config, template)
        if not isinstance(self.rows, list) or not self.rows:
            raise UserError(f"{samples} holds no samples: expected a list of conversations")
        problems = [f"row {number}: {text}" for number, row in enumerate(self.rows) if (text := problem(row))]
        if problems:
            raise UserError(
                f"{samples} has {counted(len(problems), 'malformed row')}: {'; '.join(problems[:5])}"
            )
        paths = [row["image"] for row in self.rows if "image" in row]
        if paths and (
            blind := sum(
                "image" in row and not any(IMAGE in turn["value"] for turn in row["conversations"])
                for row in self.rows
            )
        ):
            blind_rows = f"{samples}: {blind} of {len(paths)} rows with an image have no {IMAGE} in any turn"
            if blind == len(paths):
                raise UserError(f"{blind_rows}: no image would be seen")
            print(
                f"warning: {blind_rows}: they are trained on without it, as by the official code",
                file=sys.stderr,
                flush=True,
            )
        absent = [path for path in paths if not image_file(path, Path(images), Path(samples)).is_file()]
        if absent:
            raise UserError(
                f"{samples}: {counted(len(absent), 'image is', 'images are')} missing below {images}, "
                f"{absent[0]} among them"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.read(self.rows[index]), index=index)
