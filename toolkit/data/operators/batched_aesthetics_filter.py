"""Aesthetics by the LAION predictor, many rows at a time: the statistic of Data-Juicer's
`image_aesthetics_filter`.

The stock operator takes its model from the package simple-aesthetics-predictor, which does not go with
transformers 5; here the class is `toolkit/aesthetics.py`.
"""

from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.model_utils import get_model
from pydantic import PositiveInt
from torch import nn

from toolkit.data.batches import Inputs, compute, default_rows, image_inputs, model_folder
from toolkit.data.samples import only_images

NAME = "batched_aesthetics_filter"


def load_model(folder: str, device: str) -> tuple[Any, Any]:
    """The predictor in `folder` in float32, and its image processor. OSError without model.safetensors: a
    pickle is not read."""
    from transformers import AutoImageProcessor

    from toolkit.aesthetics import AestheticsPredictor

    model: nn.Module = AestheticsPredictor.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(folder)


@OPERATORS.register_module(NAME)
class BatchedAestheticsFilter(Filter):
    """Keep rows (one image each) whose aesthetics score lies within `min_score` and `max_score`.

    The statistic, `image_aesthetics_scores`, is a list of one number: the predictor's score / 10, as in the
    stock operator. `hf_scorer_model` is the folder of a predictor, version 2; `rows_at_once` rows (256 on a
    GPU, else 16) are computed together.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "image"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_scorer_model: str = "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE",
        min_score: float = 0.5,
        max_score: float = 1.0,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_score, self.max_score = min_score, max_score
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = partial(load_model, model_folder(hf_scorer_model, "an aesthetics predictor"))

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        model, processor = get_model(self.model_key, rank, self.use_cuda())

        def scores(inputs: Inputs) -> list[float]:
            return (model(**inputs).logits[:, 0] / 10).tolist()

        values = compute(paths, partial(image_inputs, processor), scores, self.rows_at_once, model.device)
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics[StatsKeys.image_aesthetics_scores] = [value]
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        (value,) = sample[Fields.stats][StatsKeys.image_aesthetics_scores]
        return self.get_keep_boolean(value, self.min_score, self.max_score)
