"""Image-text similarity by CLIP, many rows at a time: the statistic of Data-Juicer's `image_text_similarity_filter`, which takes one.

Every batch has the same shape (texts padded to the model's length, a short batch filled up), and each process computes on one thread, so a
row's statistic does not depend on the number of processes.
"""

from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import load_image, remove_special_tokens
from data_juicer.utils.model_utils import get_model, prepare_model

NAME = "batched_similarity_filter"


@OPERATORS.register_module(NAME)
class BatchedSimilarityFilter(Filter):
    """Keep rows (one image each) whose image-text similarity lies within `min_score` and `max_score`.

    The statistic, `image_text_similarity`, is a list of one number: CLIP's logit / 100, as in the stock operator. `hf_clip` is the folder
    of any HF CLIP model; `batch_size` (64) is the number of rows computed at once.
    """

    _accelerator = "cuda"
    _batched_op = True

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self, hf_clip: str = "openai/clip-vit-base-patch32", min_score: float = 0.1, max_score: float = 1.0, *args: Any, **kwargs: Any
    ) -> None:
        from transformers import AutoProcessor

        AutoProcessor.from_pretrained(hf_clip)  # here and not in a worker: a wrong folder fails at once, and the imports are shared
        kwargs.setdefault("batch_size", 64)
        super().__init__(*args, **kwargs)
        self.min_score, self.max_score = min_score, max_score
        self.model_key = prepare_model("huggingface", pretrained_model_name_or_path=hf_clip, dtype=torch.float32)

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to every row of a batch. A row without exactly one image raises ValueError."""
        if any(len(images) != 1 for images in samples[self.image_key]):
            raise ValueError("a row has not exactly one image")
        model, processor = get_model(self.model_key, rank, self.use_cuda())
        images = [load_image(paths[0]) for paths in samples[self.image_key]]
        texts = [remove_special_tokens(text) for text in samples[self.text_key]]
        missing = self.batch_size - len(texts)
        inputs = processor(
            text=texts + texts[-1:] * missing,
            images=images + images[-1:] * missing,
            return_tensors="pt",
            truncation=True,
            padding="max_length",
            max_length=model.config.text_config.max_position_embeddings,
        ).to(model.device)
        with torch.inference_mode():
            similarity = model(**inputs).logits_per_text.diagonal() / 100.0
        for statistics, value in zip(samples[Fields.stats], similarity.tolist(), strict=False):
            statistics[StatsKeys.image_text_similarity] = [value]
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        (value,) = sample[Fields.stats][StatsKeys.image_text_similarity]
        return self.get_keep_boolean(value, self.min_score, self.max_score)
