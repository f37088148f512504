"""Images with a watermark out: Data-Juicer's own filter, in batches."""

from functools import partial
from typing import Any

from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.filter.image_watermark_filter import ImageWatermarkFilter as Stock
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.model_utils import get_model

from toolkit.data.batches import default_rows, model_folder
from toolkit.data.classifier import load_model, second_class
from toolkit.data.samples import only_images

NAME = "image_watermark_filter"


@OPERATORS.register_module(NAME, force=True)
class ImageWatermarkFilter(Stock):
    """Keep rows (one image each) whose image has a watermark with a probability below `prob_threshold`.

    `hf_watermark_model`: a folder with an image classifier, whose second class is watermarks.
    """

    _batched_op = True
    _reads = "image"

    def __init__(
        self, hf_watermark_model: str = "amrul-hzz/watermark_detector", *args: Any, **kwargs: Any
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(hf_watermark_model, *args, **kwargs)
        self.model_key = partial(load_model, model_folder(hf_watermark_model, "an image classifier"))

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic, a list of one probability, to any number of rows. A row without exactly one
        image raises ValueError."""
        loaded = get_model(self.model_key, rank, self.use_cuda())
        paths = only_images(samples[self.image_key])
        values = second_class(paths, loaded, default_rows(self.use_cuda()))
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics[StatsKeys.image_watermark_prob] = [value]
        return samples
