"""Image-text similarity by CLIP, many rows at a time: the statistic of Data-Juicer's
`image_text_similarity_filter`, which takes one."""

from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import load_image, remove_special_tokens
from data_juicer.utils.model_utils import get_model, prepare_model
from pydantic import PositiveInt

from toolkit.data.batches import Inputs, compute, default_rows, model_folder
from toolkit.data.samples import only_images

NAME = "batched_similarity_filter"


@OPERATORS.register_module(NAME)
class BatchedSimilarityFilter(Filter):
    """Keep rows (one image each) whose image-text similarity lies within `min_score` and `max_score`.

    The statistic, `image_text_similarity`, is a list of one number: CLIP's logit / 100 in float32, as in the
    stock operator. `hf_clip` is the folder of any HF CLIP model; `rows_at_once` rows (256 on a GPU, else 16)
    are computed together.
    """

    _accelerator = "cuda"
    _batched_op = True

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_clip: str = "openai/clip-vit-base-patch32",
        min_score: float = 0.1,
        max_score: float = 1.0,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_score, self.max_score = min_score, max_score
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = prepare_model(
            "huggingface", pretrained_model_name_or_path=model_folder(hf_clip, "CLIP"), dtype=torch.float32
        )

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        model, processor = get_model(self.model_key, rank, self.use_cuda())
        prepare = partial(_prepare, processor, model.config.text_config.max_position_embeddings)

        def similarity(inputs: Inputs) -> list[float]:
            return (model(**inputs).logits_per_text.diagonal() / 100.0).tolist()

        items = list(zip(paths, samples[self.text_key], strict=True))
        values = compute(items, prepare, similarity, self.rows_at_once, model.device)
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics[StatsKeys.image_text_similarity] = [value]
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        (value,) = sample[Fields.stats][StatsKeys.image_text_similarity]
        return self.get_keep_boolean(value, self.min_score, self.max_score)


def _prepare(processor: Any, length: int, piece: list[tuple[str, str]]) -> Inputs:
    """What CLIP reads of some images and texts, these padded to its length."""
    texts = [remove_special_tokens(text) for _, text in piece]
    images = [load_image(path) for path, _ in piece]
    return dict(
        processor(
            text=texts,
            images=images,
            return_tensors="pt",
            truncation=True,
            padding="max_length",
            max_length=length,
        )
    )
