"""BLIP-2 captions, greedy and many at a time: two runs give the same captions, and the batch size does not change one.

The stock `image_captioning_mapper` samples without a seed, up to 128 tokens. Here every batch has the same shape (a short one is filled up)
and each process computes on one thread, so a caption does not depend on the number of processes either.
"""

from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Mapper
from data_juicer.utils.mm_utils import SpecialTokens, load_image
from data_juicer.utils.model_utils import get_model, prepare_model

NAME = "greedy_captioning_mapper"


@OPERATORS.register_module(NAME)
class GreedyCaptioningMapper(Mapper):
    """Replace the caption of every row (one image each) by the model's own.

    `hf_img2seq` is the folder of any HF `Blip2ForConditionalGeneration` with its processor; `max_new_tokens` bounds a caption;
    `batch_size` (64) is the number of images captioned at once.
    """

    _accelerator = "cuda"
    _batched_op = True

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(self, hf_img2seq: str = "Salesforce/blip2-opt-2.7b", max_new_tokens: int = 32, *args: Any, **kwargs: Any) -> None:
        from transformers import AutoProcessor

        AutoProcessor.from_pretrained(hf_img2seq)  # here and not in a worker: a wrong folder fails at once, and the imports are shared
        kwargs.setdefault("batch_size", 64)
        super().__init__(*args, **kwargs)
        self.max_new_tokens = max_new_tokens
        # Half precision where it is fast; on a CPU it is not.
        dtype = torch.bfloat16 if self.use_cuda() else torch.float32
        self.model_key = prepare_model("huggingface", pretrained_model_name_or_path=hf_img2seq, dtype=dtype)

    def process_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Caption a batch of rows. A row without exactly one image raises ValueError."""
        if any(len(images) != 1 for images in samples[self.image_key]):
            raise ValueError("a row has not exactly one image")
        model, processor = get_model(self.model_key, rank, self.use_cuda())
        images = [load_image(paths[0]) for paths in samples[self.image_key]]
        images += images[-1:] * (self.batch_size - len(images))
        inputs = processor(images=images, return_tensors="pt").to(model.device, model.dtype)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        captions = processor.batch_decode(tokens, skip_special_tokens=True)
        samples[self.text_key] = [
            f"{SpecialTokens.image}\n{caption.strip()} {SpecialTokens.eoc}"
            for caption, _ in zip(captions, samples[self.text_key], strict=False)
        ]
        return samples
