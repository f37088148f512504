"""Answers of a checkpoint to questions about images: greedy decoding with the template of its tokenizer."""

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.mgm.checkpoint import load_checkpoint
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.device import CPU_THREADS, choose_device
from toolkit.mgm.generate import Greedy, Prompt, PromptState
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.nucleus import Sampling
from toolkit.mgm.processor import pixels
from toolkit.mgm.text import IMAGE, TEMPLATES, ends, template_of, tokenize, tokenize_all
from toolkit.mgm.tokenizer import load_tokenizer

# Folder, type and device to model and tokenizer.
Read = Callable[[Path | str, torch.dtype, torch.device], tuple[MGMForCausalLM, PreTrainedTokenizerBase]]
# What later tokens may still change of a text: half a letter, and spaces, which are stripped at the end and
# which some tokenizers drop before marks and contractions.
OPEN = re.compile(r"(?:\s+\S{0,2})?\ufffd*\s*\Z")


class Text:
    """An answer's text while its tokens come: what `more` returns, put together, is the whole text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.shown = tokenizer, 0

    def more(self, ids: list[int], ended: bool) -> str:
        """What the ids so far add to the text; all that is missing when they have `ended`."""
        text = answer_text(self.tokenizer, ids)
        stable = len(text if ended else OPEN.sub("", text))
        piece, self.shown = text[self.shown : stable], max(self.shown, stable)
        return piece


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of an answer's ids."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)  # as of one list of ids
    return text.strip()


def from_checkpoint(
    folder: Path | str, dtype: torch.dtype, device: torch.device
) -> tuple[MGMForCausalLM, PreTrainedTokenizerBase]:
    """Model and tokenizer of a full checkpoint's folder."""
    model = load_checkpoint(folder, dtype).to(device)
    return model, load_tokenizer(folder, model.mgm.model_max_length)


class Prompts:
    """Makes prompts of words, by a model's tokenizer and configuration. tokens_per_image: in a prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mgm: MGMConfig, tokens_per_image: int) -> None:
        self.tokenizer, self.mgm, self.tokens_per_image = tokenizer, mgm, tokens_per_image
        self.template = template_of(tokenizer)

    def prompt(self, message: str, name: Hashable) -> Prompt:
        """Token ids of the user message about the image `name`, about several whose names are a tuple, or,
        with None, about none."""
        return self.conversation([message], name, _places(name))

    def prompts(self, messages: list[str], names: Sequence[Hashable]) -> list[Prompt]:
        """`prompt` of each, in less time."""
        asked = [(name, _places(name)) for name in names]
        texts = [self._text([text], places) for text, (_, places) in zip(messages, asked, strict=True)]
        ids = tokenize_all(texts, self.tokenizer)
        return [self._prompt(each, *about) for each, about in zip(ids, asked, strict=True)]

    def conversation(self, turns: list[str], name: Hashable, places: list[int]) -> Prompt:
        """Token ids of the turns, user and model alternating, the user's last. places: each image's turn, in
        their order; name: of the images together, None without any.

        Images stand in front of their turn's text. UserError for a text with an image marker, and for images
        that leave no room for text.
        """
        return self._prompt(tokenize(self._text(turns, places), self.tokenizer), name, places)

    def _text(self, turns: list[str], places: list[int]) -> str:
        if marked := [turn for turn in turns if IMAGE in turn]:
            raise UserError(
                f"a question contains {IMAGE}, which marks the place of the image: take it out "
                f"({marked[0][:80]!r})"
            )
        turns = [f"{IMAGE}\n" * places.count(place) + turn for place, turn in enumerate(turns)]
        return TEMPLATES[self.template].prompt([*turns, None])

    def _prompt(self, ids: list[int], name: Hashable, places: list[int]) -> Prompt:
        prompt = Prompt.of(ids, name)  # which Greedy cuts at the model's length
        shown, longest = prompt.begins(self.tokens_per_image), self.mgm.model_max_length
        if shown >= longest:
            images = counted(len(places), "image takes", "images take")
            raise UserError(f"{images} {shown} tokens, the model reads {longest}: ask about fewer at once")
        return prompt

    def assert_whole(self, prompt: Prompt) -> None:
        """UserError for a prompt whose end would be cut."""
        length, longest = prompt.length(self.tokens_per_image), self.mgm.model_max_length
        if length > longest:
            raise UserError(f"the question has {length} tokens, the model reads {longest}: ask a shorter one")

    def pixels(self, images: Image.Image | list[Image.Image]) -> np.ndarray:
        """What the model sees of a question's image, uint8 [S, S, 3], or of several, [images, S, S, 3]."""
        if isinstance(images, Image.Image):
            return pixels(images, self.mgm)
        seen = [pixels(image, self.mgm) for image in images]
        return np.stack(seen) if len(seen) > 1 else seen[0]


def _places(name: Hashable) -> list[int]:
    """The first turn, for each image of a name."""
    return [0] * (len(name) if isinstance(name, tuple) else int(name is not None))


class Answerer(Prompts):
    """A loaded checkpoint that answers `batch_size` questions at once. fp16 on a GPU as in the official
    evaluation, float32 on the CPU. read: gives model and tokenizer of a folder that is no full checkpoint."""

    def __init__(
        self, model_dir: Path | str, device: str = "auto", batch_size: int = 16, read: Read = from_checkpoint
    ) -> None:
        self.device = choose_device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.model, tokenizer = read(model_dir, dtype, self.device)
        super().__init__(tokenizer, self.model.mgm, self.model.tokens_per_image)
        self.greedy = Greedy(self.model, batch_size, ends(self.tokenizer, self.template))

    @property
    def again(self) -> int:
        """Questions that were asked a second time, alone, because rounding might have decided."""
        return self.greedy.again

    def stream(
        self,
        messages: list[str],
        names: Sequence[Hashable],
        load: Callable[[int], Image.Image | list[Image.Image]],
        max_new_tokens: int,
        *,
        whole: bool = False,
    ) -> Iterator[tuple[int, str]]:
        """(number of the question, its answer), in the order in which answers end; none depends on the other
        questions.

        messages: the users' words. names: of the questions' images, as `prompt` takes them; equal names are
        the same image. load: number of a question to its image or images; called in threads. whole: a prompt
        that is longer than the model reads is a UserError and not cut, as the official evaluation does. And
        UserError for a message with an image marker of its own.
        """
        prompts = self.prompts(messages, names)
        if whole:
            for prompt in prompts:
                self.assert_whole(prompt)
        for number, ids in self.greedy.run(prompts, lambda number: self.pixels(load(number)), max_new_tokens):
            yield number, answer_text(self.tokenizer, ids)

    def pieces(
        self, message: str, images: list[Image.Image], max_new_tokens: int, sampling: Sampling | None = None
    ) -> Iterator[str]:
        """The answer to one question in pieces, as they come; greedy without `sampling`."""
        prompt = self.prompt(message, tuple(range(len(images))) or None)
        self.assert_whole(prompt)
        future: Future | None = None
        if images:
            future = Future()
            future.set_result(self.greedy.sent(self.pixels(images)))
        row = PromptState(0, prompt, future, max_new_tokens, sampling.drawer() if sampling else None)
        waiting, text = [row], Text(self.tokenizer)
        columns = self.greedy.length(prompt) + max_new_tokens
        for _ in self.greedy.follow(lambda free: [waiting.pop()] if waiting else [], columns):
            if piece := text.more(row.new, bool(row.ended)):
                yield piece

    def answer(self, messages: list[str], images: list[Image.Image | None], max_new_tokens: int) -> list[str]:
        """One text for each message; an image of None stands for a question without one."""
        shown = {number: image for number, image in enumerate(images) if image is not None}
        names = [number if number in shown else None for number in range(len(images))]
        return [text for _, text in sorted(self.stream(messages, names, shown.__getitem__, max_new_tokens))]

    def near(
        self, message: str, image: Image.Image | None, text: str, max_new_tokens: int, tolerance: float
    ) -> bool:
        """Whether rounding can have led to the answer `text`, see `Greedy.near_ties`."""
        prompt = self.prompt(message, None if image is None else 0)
        picture = None if image is None else self.pixels(image)
        return any(
            answer_text(self.tokenizer, ids) == text
            for ids in self.greedy.near_ties(prompt, picture, max_new_tokens, tolerance)
        )
