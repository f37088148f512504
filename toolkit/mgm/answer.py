"""Answers of a checkpoint to questions about images: batched greedy decoding with the gemma template."""

from pathlib import Path

import torch
from PIL import Image

from toolkit.mgm.checkpoint import load_checkpoint, load_tokenizer
from toolkit.mgm.processor import blank, preprocess
from toolkit.mgm.text import collate, question_prompt, tokenize

CPU_THREADS = 1  # sums split over threads round differently: one thread gives the same bits on any number of cores


def choose_device(device: str = "auto") -> torch.device:
    """`auto` takes the first CUDA device where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


class Answerer:
    """A loaded checkpoint. fp16 on a GPU as in the official evaluation, float32 on the CPU."""

    def __init__(self, model_dir: Path | str, device: str = "auto", batch_size: int = 16) -> None:
        self.device = choose_device(device)
        self.batch_size = batch_size
        if self.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.model = load_checkpoint(model_dir, dtype).to(self.device)
        self.tokenizer = load_tokenizer(model_dir, self.model.mgm.model_max_length)

    def answer(self, prompts: list[str], images: list[Image.Image | None], max_new_tokens: int) -> list[str]:
        """One text for each user message; an image of None stands for a question without one."""
        answers: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            answers += self._batch(prompts[start : start + self.batch_size], images[start : start + self.batch_size], max_new_tokens)
        return answers

    def _batch(self, prompts: list[str], images: list[Image.Image | None], max_new_tokens: int) -> list[str]:
        samples = []
        for prompt, image in zip(prompts, images, strict=True):
            text = question_prompt(prompt)
            ids = tokenize(text if image else text.replace("<image>\n", "", 1), self.tokenizer, has_image=image is not None)
            low, high = preprocess(image, self.model.mgm) if image else blank(self.model.mgm)
            samples.append({"input_ids": ids, "labels": ids, "images": low, "images_aux": high})
        batch = collate(samples, self.tokenizer.pad_token_id, self.model.mgm.model_max_length)
        batch = {key: value.to(self.device) for key, value in batch.items()}
        batch |= {key: batch[key].to(self.model.dtype) for key in ("images", "images_aux")}
        with torch.inference_mode():
            ids = self.model.greedy(batch["input_ids"], batch["mask"], batch["images"], batch["images_aux"], max_new_tokens)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
