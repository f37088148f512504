"""What stands in an image, noted beside its row: for ocr_filter, ocr_caption_mapper and
ocr_question_answer_mapper, which read no image themselves.

    - ocr_mapper:
        hf_ocr: "{ocr}"

An image is read once, whatever rows, steps and recipes ask for it: the store keeps what was read by the
image's content.
"""

from functools import partial
from typing import Any

from data_juicer.ops.base_op import OPERATORS, TAGGING_OPS, Mapper
from data_juicer.utils.constant import Fields
from data_juicer.utils.mm_utils import load_image
from data_juicer.utils.model_utils import get_model

from toolkit.data.ocr import PACKAGES, Reader, check_models, tag
from toolkit.data.samples import only_images

NAME = "ocr_mapper"


@TAGGING_OPS.register_module(NAME)
@OPERATORS.register_module(NAME)
class OcrMapper(Mapper):
    """Note the lines of text in every row's one image, in the row's meta as `ocr`: text, box, confidence.

    `hf_ocr` is a folder with detector.onnx and recogniser.onnx (toolkit/data/ocr.py). Text and image stay.
    """

    _batched_op = True
    _reads = "image"
    _packages = PACKAGES

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(self, hf_ocr: str = "pp-ocrv6-small", *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_key = partial(Reader, check_models(hf_ocr))

    def process_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Read the images of any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        reader = get_model(self.model_key, rank, False)
        for path, meta in zip(paths, samples[Fields.meta], strict=True):
            meta.update(tag(reader.read(load_image(path))))
        return samples
