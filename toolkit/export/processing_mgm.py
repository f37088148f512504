"""Images and questions for an exported model: part of its folder."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase

from toolkit.export.parts import MGMConfig
from toolkit.mgm.processor import preprocess
from toolkit.mgm.text import IMAGE, TEMPLATES, template_of, tokenize


class MGMProcessor:
    """Ids and pixels of questions, by the template of the model's tokenizer."""

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = MGMConfig.of(config), tokenizer
        self.template = TEMPLATES[template_of(tokenizer)]

    @classmethod
    def from_pretrained(cls, folder: Path | str, **kwargs: Any) -> "MGMProcessor":
        """Of a folder or a repository of the Hub."""
        given = {key: value for key, value in kwargs.items() if key in ("revision", "token", "cache_dir")}
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True, **given)
        return cls(config, AutoTokenizer.from_pretrained(folder, config=config, **given))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Called by AutoProcessor; only a class that saves itself has to note anything."""

    def __call__(
        self, images: Image.Image | list[Image.Image], text: str | list[str], return_tensors: str = "pt"
    ) -> BatchFeature:
        """One image and one question, or as many of each: {input_ids, attention_mask [B, l], images
        [B, 3, s, s], images_aux [B, 3, S, S]}, which `to` moves to a device; tensors whatever return_tensors
        says, which is there because callers of processors give it. ValueError for a question with an image
        marker of its own."""
        pictures = [images] if isinstance(images, Image.Image) else images
        questions = [text] if isinstance(text, str) else text
        if len(pictures) != len(questions) or any(IMAGE in question for question in questions):
            raise ValueError(f"one image is expected for each question, and no {IMAGE} in it")
        rows = [
            torch.tensor(tokenize(self.template.prompt([f"{IMAGE}\n{question}", None]), self.tokenizer))
            for question in questions
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        # in an exported folder `parts` stands for toolkit.mgm.config
        pixels = (preprocess(picture, self.config) for picture in pictures)  # type: ignore[arg-type]
        low, high = zip(*pixels, strict=True)
        return BatchFeature(
            {
                "input_ids": pad(
                    rows, batch_first=True, padding_value=self.tokenizer.pad_token_id, padding_side="left"
                ),
                "attention_mask": pad(
                    [torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"
                ),
                "images": torch.stack(low),
                "images_aux": torch.stack(high),
            }
        )

    def decode(self, ids: Tensor) -> str:
        """An answer's text."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # as of one row of ids
        return text.strip()

    def batch_decode(self, ids: Tensor) -> list[str]:
        """A text for each row of ids."""
        return list(map(self.decode, ids))
