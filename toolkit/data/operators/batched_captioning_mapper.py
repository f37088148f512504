"""Captions by a model, many at a time: two runs give the same, and neither the batch nor the number of
processes changes one.

The stock `image_captioning_mapper` takes one row at a time in float32 and samples up to 128 tokens without a
seed. Here a caption is greedy, or drawn with noise that comes from the seed and the image alone.
"""

import copy
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Mapper
from data_juicer.utils.mm_utils import SpecialTokens, load_image
from data_juicer.utils.model_utils import get_model
from pydantic import NonNegativeFloat, PositiveInt
from torch import nn

from toolkit.data.batches import Inputs, compute, default_rows, model_folder
from toolkit.data.samples import only_images

NAME = "batched_captioning_mapper"


def load_model(folder: str, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """The captioner in `folder` and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: nn.Module = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    return model.to(device).eval(), AutoProcessor.from_pretrained(folder)


@OPERATORS.register_module(NAME)
class BatchedCaptioningMapper(Mapper):
    """Caption every row (one image each): `caption_num` rows for each, after the row itself if
    `keep_original_sample`.

    `hf_img2seq` is the folder of BLIP-2 or any other HF image-text-to-text model (bfloat16 on a GPU, float32
    on a CPU); `prompt` goes into its chat template where it has one, and is otherwise put before the caption
    as it stands. `max_new_tokens` bounds a caption. `temperature` 0 is greedy; above it, captions are sampled
    by `seed`, from the most likely tokens that make up `top_p`. `image_size` makes all images squares of that
    many pixels first: needed by models whose number of tokens depends on the image's size. `rows_at_once`
    images (512 on a GPU, else 16) are captioned together.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "image"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_img2seq: str = "Salesforce/blip2-opt-2.7b",
        max_new_tokens: PositiveInt = 32,
        prompt: str | None = None,
        caption_num: PositiveInt = 1,
        keep_original_sample: bool = False,
        temperature: NonNegativeFloat = 0.0,
        top_p: NonNegativeFloat = 1.0,
        seed: int = 0,
        image_size: PositiveInt | None = None,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        if caption_num > 1 and not temperature:
            raise ValueError(
                f"caption_num is {caption_num}, but at temperature 0 all captions of an image are the same"
            )
        if keep_original_sample:
            self._reads = "both"  # the row's own text is part of the result
        self.prompt, self.max_new_tokens, self.caption_num, self.keep_original_sample = (
            prompt,
            max_new_tokens,
            caption_num,
            keep_original_sample,
        )
        self.temperature, self.top_p, self.seed, self.image_size = temperature, top_p, seed, image_size
        # 512: the fewer its batches, the less a GPU waits for the launch of every new token
        self.rows_at_once = rows_at_once or (512 if self.use_cuda() else default_rows(False))
        self.dtype = torch.bfloat16 if self.use_cuda() else torch.float32  # half precision where it is fast
        self.model_key = partial(load_model, model_folder(hf_img2seq, "a captioner"), self.dtype)

    def process_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Caption any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        model, processor = get_model(self.model_key, rank, self.use_cuda())
        items = [(path, number) for path in paths for number in range(self.caption_num)]
        prepare = partial(self._prepare, processor, self._prompt_text(processor))
        captions = compute(
            items, prepare, partial(self._say, model, processor), self.rows_at_once, model.device
        )
        batch: dict[str, list] = {name: [] for name in samples}
        for row in range(len(samples[self.text_key])):
            new_texts = [
                f"{SpecialTokens.image}\n{captions[row * self.caption_num + k]} {SpecialTokens.eoc}"
                for k in range(self.caption_num)
            ]
            for text in [samples[self.text_key][row]] * self.keep_original_sample + new_texts:
                for name, values in samples.items():
                    batch[name].append(text if name == self.text_key else copy.deepcopy(values[row]))
        return batch

    def _prompt_text(self, processor: Any) -> str | None:
        """The prompt as the model reads it. ValueError for a chat model that is asked nothing."""
        if not getattr(processor, "chat_template", None):
            return self.prompt
        if not self.prompt:
            raise ValueError("the captioner answers what it is asked: give a prompt")
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _prepare(self, processor: Any, prompt: str | None, piece: list[tuple[str, int]]) -> Inputs:
        """What the model reads of some images, and a seed for each."""
        images = [load_image(path) for path, _ in piece]
        if self.image_size:
            images = [image.resize((self.image_size, self.image_size)) for image in images]
        text = {} if prompt is None else {"text": [prompt] * len(images)}
        inputs = {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in processor(images=images, return_tensors="pt", **text).items()
        }
        if self.temperature:
            inputs["seeds"] = torch.tensor([self._seed(path, number) for path, number in piece])
        return inputs

    def _seed(self, path: str, number: int) -> int:
        """64 bits from the seed, the image file's content and the number of the caption."""
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        digest = hashlib.sha256(f"{self.seed} {number} {content}".encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    def _say(self, model: Any, processor: Any, inputs: Inputs) -> list[str]:
        """The captions of a batch."""
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        sampling = LogitsProcessorList()
        if self.temperature:
            sampling += [
                TemperatureLogitsWarper(self.temperature),
                TopPLogitsWarper(self.top_p),
                SeededNoise(inputs.pop("seeds")),
            ]
        tokens = model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=sampling,
        )
        prompt_ids = inputs.get("input_ids")
        if prompt_ids is not None and torch.equal(tokens[:, : prompt_ids.shape[1]], prompt_ids):
            tokens = tokens[:, prompt_ids.shape[1] :]
        return [caption.strip() for caption in processor.batch_decode(tokens, skip_special_tokens=True)]


class SeededNoise:
    """Gumbel noise on the logits, so that the largest is a draw from their softmax; each row's comes from its
    own seed, int64 [rows]."""

    def __init__(self, seeds: torch.Tensor) -> None:
        self.seeds = seeds

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores`, [rows, vocabulary], with the noise of this position."""
        return scores + gumbel(self.seeds, input_ids.shape[1], scores.shape[1])


def gumbel(seeds: torch.Tensor, position: int, count: int) -> torch.Tensor:
    """float32 [rows, count] of standard Gumbel noise: SplitMix64 (Steele et al. 2014) of seed, position and
    column."""
    counter = torch.arange(position * count + 1, (position + 1) * count + 1, device=seeds.device)
    bits = seeds[:, None] + counter * (0x9E3779B97F4A7C15 - 2**64)  # int64 wraps around
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * factor  # the mask makes it a logical shift
    bits = bits ^ (bits >> 31 & (1 << 33) - 1)
    uniform = ((bits >> 41 & (1 << 23) - 1).float() + 0.5) / (1 << 23)  # never 0 or 1
    return -torch.log(-torch.log(uniform))
