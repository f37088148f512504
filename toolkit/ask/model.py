"""The Python interface: one object that answers."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from toolkit.ask.folder import answerer
from toolkit.errors import UserError
from toolkit.images import Unreadable, load

if TYPE_CHECKING:
    from toolkit.mgm.answer import Answerer
    from toolkit.mgm.nucleus import Sampling
    from toolkit.train.inputs import BaseModels

MAX_NEW_TOKENS = 512
Picture = Image.Image | Path | str  # an image, or its file
Pictures = Picture | Sequence[Picture] | None  # one, several, or none


class MGM:
    """A loaded model. Its greedy answers are those of `python -m toolkit evaluate` to the same questions,
    whatever is answered beside them. Not for several threads at once.

    image: a PIL image, the path of one, a list of these, or None; several are shown in their order, in front
    of the text. text: the question, without a marker of the image. sampling: how tokens are drawn, by default
    not at all. UserError for a text with a marker, an image that cannot be read, and more images and words
    than the model reads.
    """

    def __init__(self, answerer: "Answerer") -> None:
        self.answerer = answerer

    @classmethod
    def load(
        cls,
        folder: Path | str,
        base: "BaseModels | None" = None,
        device: str = "auto",
        batch_size: int = 16,
        quantize: str | None = None,
    ) -> "MGM":
        """The model of a folder: one with merge.json, a full checkpoint, ours or official, or a LoRA folder
        with the models that it was trained on.

        device: "cpu", "cuda", or "auto", a GPU where there is one. quantize: "nf4" for 4-bit weights.
        UserError for a folder that holds none.
        """
        return cls(answerer(Path(folder), base, device, batch_size, quantize))

    def answer(
        self,
        image: Pictures,
        text: str,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: "Sampling | None" = None,
    ) -> str:
        """The answer to a question about an image, about several or none."""
        return "".join(self.stream(image, text, max_new_tokens, sampling))

    def stream(
        self,
        image: Pictures,
        text: str,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: "Sampling | None" = None,
    ) -> Iterator[str]:
        """The answer in pieces, as they come."""
        return self.answerer.pieces(text, list(map(opened, pictures(image))), max_new_tokens, sampling)

    def answers(
        self, questions: Iterable[tuple[Pictures, str]], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[str]:
        """The greedy answers to many questions (image, text), in their order, answered together. One path is
        one image, read once."""
        asked = [(pictures(image), text) for image, text in questions]
        ended: dict[int, str] = {}
        stream = self.answerer.stream(
            [text for _, text in asked],
            [tuple(map(image_key, images)) or None for images, _ in asked],
            lambda number: list(map(opened, asked[number][0])),
            max_new_tokens,
            whole=True,
        )
        position = 0
        for number, answer in stream:
            ended[number] = answer
            while position in ended:
                yield ended.pop(position)
                position += 1


def pictures(image: Pictures) -> list[Picture]:
    """The images of a question."""
    if image is None:
        return []
    return [image] if isinstance(image, Image.Image | Path | str) else list(image)


def image_key(image: Picture) -> Hashable:
    """Equal names are the same image."""
    return id(image) if isinstance(image, Image.Image) else str(image)


def opened(image: Picture) -> Image.Image:
    """An image, loaded where it is a path; UserError when it cannot be."""
    if isinstance(image, Image.Image):
        return image
    try:
        return load(Path(image))
    except (Unreadable, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{image} cannot be read as an image: {reason}") from None
