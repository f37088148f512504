"""LLaVA samples as model inputs."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import blank, preprocess
from toolkit.mgm.text import IMAGE, encode


def problem(row: Any) -> str | None:
    """What makes a row of a LLaVA json unfit for training, None when nothing does."""
    if not isinstance(row, dict):
        return "not an object"
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return "no conversations"
    if not all(isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str) for turn in turns):
        return "a turn without the texts `from` and `value`"
    if not any(turn["value"].split() for turn in turns):
        return "no word in any turn"
    if "image" in row and not isinstance(row["image"], str):
        return "`image` is not a path"
    if "image" in row and sum(IMAGE in turn["value"] for turn in turns) > 1:
        return f"several turns with {IMAGE} and one image"
    return None


class Conversations(Dataset):
    """Rows of a LLaVA json: `{id, conversations, image?}`; `image` is a path below `images`.

    Item: input_ids, labels (lists of ints), images, images_aux (tensors). A bad image ends the training with a sentence that names
    it; the official code would train on another sample in silence.
    """

    def __init__(
        self, samples: Path | str, images: Path | str, tokenizer: PreTrainedTokenizerBase, config: MGMConfig, template: str
    ) -> None:
        self.rows: list[dict[str, Any]] = read_json(samples)
        self.images, self.tokenizer, self.config, self.template = Path(images), tokenizer, config, template
        if not isinstance(self.rows, list) or not self.rows:
            raise UserError(f"{samples} holds no samples: expected a list of conversations")
        problems = [f"row {number}: {text}" for number, row in enumerate(self.rows) if (text := problem(row))]
        if problems:
            raise UserError(f"{samples} has {len(problems)} malformed rows: {'; '.join(problems[:5])}")
        absent = [row["image"] for row in self.rows if "image" in row and not (self.images / row["image"]).is_file()]
        if absent:
            raise UserError(f"{samples}: {len(absent)} images are missing below {images}, {absent[0]} among them")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        has_image = "image" in row
        try:
            ids, labels = encode(row["conversations"], self.tokenizer, self.template, has_image=has_image)
            low, high = self.load(row["image"]) if has_image else blank(self.config)
        except (UserError, OSError) as error:
            raise UserError(f"sample {row.get('id')!r}: {error}") from None
        return {"input_ids": ids, "labels": labels, "images": low, "images_aux": high}

    def load(self, name: str) -> tuple:
        """The two tensors of one image."""
        with Image.open(self.images / name) as image:
            return preprocess(image, self.config)
