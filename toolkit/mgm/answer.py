"""Answers of a checkpoint to questions about images: greedy decoding with the template of its tokenizer."""

from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import torch
from PIL import Image

from toolkit.errors import UserError
from toolkit.mgm.checkpoint import load_checkpoint
from toolkit.mgm.device import CPU_THREADS, choose_device
from toolkit.mgm.generate import Greedy, Prompt
from toolkit.mgm.processor import pixels
from toolkit.mgm.text import IMAGE, ends, question_prompt, template_of, tokenize
from toolkit.mgm.tokenizer import load_tokenizer


class Answerer:
    """A loaded checkpoint that answers `batch_size` questions at once. fp16 on a GPU as in the official
    evaluation, float32 on the CPU."""

    def __init__(self, model_dir: Path | str, device: str = "auto", batch_size: int = 16) -> None:
        self.device = choose_device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.model = load_checkpoint(model_dir, dtype).to(self.device)
        self.tokenizer = load_tokenizer(model_dir, self.model.mgm.model_max_length)
        self.template = template_of(self.tokenizer)
        self.greedy = Greedy(self.model, batch_size, ends(self.tokenizer, self.template))

    @property
    def again(self) -> int:
        """Questions that were asked a second time, alone, because rounding might have decided."""
        return self.greedy.again

    def stream(
        self,
        messages: list[str],
        names: list[Hashable],
        load: Callable[[int], Image.Image],
        max_new_tokens: int,
    ) -> Iterator[tuple[int, str]]:
        """(number of the question, its answer), in the order in which answers end; none depends on the other
        questions.

        messages: the users' words. names: of the questions' images, None for no image; equal names are the
        same image. load: number of a question to its image; called in threads. UserError for a message with
        an image marker of its own.
        """
        prompts = [self.prompt(message, name) for message, name in zip(messages, names, strict=True)]
        for number, ids in self.greedy.run(
            prompts, lambda number: pixels(load(number), self.model.mgm), max_new_tokens
        ):
            yield number, self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def answer(self, messages: list[str], images: list[Image.Image | None], max_new_tokens: int) -> list[str]:
        """One text for each message; an image of None stands for a question without one."""
        names = [None if image is None else number for number, image in enumerate(images)]
        return [text for _, text in sorted(self.stream(messages, names, images.__getitem__, max_new_tokens))]

    def near(
        self, message: str, image: Image.Image | None, text: str, max_new_tokens: int, tolerance: float
    ) -> bool:
        """Whether rounding can have led to the answer `text`, see `Greedy.near_ties`."""
        prompt = self.prompt(message, None if image is None else 0)
        picture = None if image is None else pixels(image, self.model.mgm)
        return any(
            self.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
            for ids in self.greedy.near_ties(prompt, picture, max_new_tokens, tolerance)
        )

    def prompt(self, message: str, name: Hashable) -> Prompt:
        """Token ids of the user message, about the image `name` or about none."""
        if IMAGE in message:
            raise UserError(
                f"a question contains {IMAGE}, which marks the place of the image: take it out "
                f"({message[:80]!r})"
            )
        text = question_prompt(message, self.template)
        if name is None:
            ids = tokenize(text.replace(f"{IMAGE}\n", ""), self.tokenizer, has_image=False)
        else:
            ids = tokenize(text, self.tokenizer)
        return Prompt.of(ids, name)
