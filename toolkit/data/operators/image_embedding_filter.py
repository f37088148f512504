"""CLIP's embedding of every image as a statistic, for selectors that look at the distribution of images. No
row is removed."""

from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields
from data_juicer.utils.model_utils import get_model, prepare_model
from pydantic import PositiveInt

from toolkit.data.batches import Inputs, compute, default_rows, image_inputs, model_folder
from toolkit.data.samples import only_images

NAME = "image_embedding_filter"
DIGITS = 4  # after the point: a cosine of 512 rounded numbers is right to about 1e-4


@OPERATORS.register_module(NAME)
class ImageEmbeddingFilter(Filter):
    """Keep every row (one image each) and note its `image_embedding`: numbers of CLIP's joint space, of
    length 1, rounded to 4 digits.

    `hf_clip` is the folder of any HF CLIP model; `rows_at_once` rows (256 on a GPU, else 16) are computed
    together.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "image"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_clip: str = "openai/clip-vit-base-patch32",
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = prepare_model(
            "huggingface", pretrained_model_name_or_path=model_folder(hf_clip, "CLIP"), dtype=torch.float32
        )

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        model, processor = get_model(self.model_key, rank, self.use_cuda())

        def embeddings(inputs: Inputs) -> list[list[float]]:
            normalised = torch.nn.functional.normalize(
                model.get_image_features(**inputs).pooler_output, dim=-1
            )
            return [[round(value, DIGITS) for value in row] for row in normalised.tolist()]

        values = compute(paths, partial(image_inputs, processor), embeddings, self.rows_at_once, model.device)
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics["image_embedding"] = value
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True: the statistic is all this is for."""
        return True
