"""Text in images: the reader, and what the operators share that use what it read.

The weights are the asset pp-ocrv6-small or any PP-OCR models in ONNX: detector.onnx, which finds lines, and
recogniser.onnx, which reads them and holds its characters as metadata. RapidOCR prepares the images, and ONNX
Runtime computes, on one thread of the CPU: `make setup EXTRAS=ocr` installs both.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from toolkit.data.samples import row_problem, text_of
from toolkit.errors import UserError

TAG = "ocr"  # of a row, in its meta: the lines that stand in its image
PACKAGES = ("rapidocr", "onnxruntime", "opencv-python-headless")
CONFIDENT = 0.97  # docs/ocr.md has what is read exactly from there on
SPACE = 0.05  # probability from which on a gap between two characters is taken for a space
SHORTER = 576  # pixels of the shorter side at least, for the detector; RapidOCR's own 736: docs/ocr.md
LONG = 8  # times as high as wide an image is read at most
Confidence = Annotated[float, Field(ge=0, le=1)]
COLUMNS, ROWS = ("left", "", "right"), ("top", "", "bottom")


@dataclass(frozen=True)
class Line:
    """A line of text in an image. `box`: left, top, right, bottom as shares of the image's width and height;
    `confidence`: the mean probability of its characters."""

    text: str
    box: list[float]
    confidence: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    @property
    def place(self) -> str:
        """Where it stands, by thirds: `at the top left`, `in the middle`."""
        left, top, right, bottom = self.box
        row, column = ROWS[min(int(1.5 * (top + bottom)), 2)], COLUMNS[min(int(1.5 * (left + right)), 2)]
        return f"at the {f'{row} {column}'.strip()}" if row or column else "in the middle"


class Spaces:
    """A decoder of the recogniser's probabilities that also writes the spaces which it holds possible. It was
    trained on Chinese above all, and prefers no space where a Latin line is set closely."""

    def __init__(self, decode: Any) -> None:
        self.decode, self.space = decode, decode.character.index(" ")

    def __call__(self, probabilities: np.ndarray, *arguments: Any, **keywords: Any) -> Any:
        """probabilities: float32 [lines, columns, characters], changed in place; the first is none."""
        none, space = probabilities[..., 0], probabilities[..., self.space]
        possible = (probabilities.argmax(2) == 0) & (space >= SPACE)
        space[possible], none[possible] = none[possible], 0
        return self.decode(probabilities, *arguments, **keywords)


class Reader:
    """The models in `folder`. Two readings of one image are equal: neither other images nor the number of
    processes reach it."""

    def __init__(self, folder: Path | str, device: str = "cpu") -> None:
        import cv2
        from rapidocr import RapidOCR

        cv2.setNumThreads(1)
        self.engine = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.use_cls": False,
                "Global.text_score": 0.0,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Det.limit_type": "min",
                "Det.limit_side_len": SHORTER,
                "Det.model_path": str(Path(folder, "detector.onnx")),
                "Rec.model_path": str(Path(folder, "recogniser.onnx")),
            }
        )
        recogniser = self.engine._load_rec_model()  # no public name leads to its probabilities
        recogniser.postprocess_op = Spaces(recogniser.postprocess_op)

    def read(self, image: Image.Image) -> list[Line]:
        """The lines in an RGB image, from top to bottom."""
        import torch

        pixels = np.array(image)[:, :, ::-1]
        # the shorter side is enlarged: a strip would take gigabytes. RapidOCR widens flat ones.
        missing = max(image.height // LONG - image.width, 0)
        padded = np.pad(pixels, ((0, 0), (0, missing), (0, 0)))
        # Every eighth weight of the detector is denormal, with which Intel's processors are slow: for this
        # thread, which computes, those count as zero.
        torch.set_flush_denormal(True)
        try:
            result: Any = self.engine(padded)
        finally:
            torch.set_flush_denormal(False)
        if result.boxes is None:
            return []
        size = np.array(image.size)
        corners = (result.boxes / size).round(3)
        return [
            Line(
                " ".join(text.split()),
                [*box.min(0).tolist(), *box.max(0).tolist()],
                round(float(confidence), 3),
            )
            for text, box, confidence in zip(result.txts, corners, result.scores, strict=True)
        ]


def check_models(folder: str) -> str:
    """`folder`. UserError without the packages that read, OSError if no models lie there."""
    if absent := [name for name in PACKAGES[:2] if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"it needs the Python package {absent[0]}, which is not installed: run `make setup EXTRAS=ocr`, "
            "or take the step out"
        )
    for name in ("detector.onnx", "recogniser.onnx"):
        if not Path(folder, name).is_file():
            raise OSError(f"{folder} holds no models that read: there is no {name} in it")
    return folder


def tag(lines: Sequence[Line]) -> dict[str, Any]:
    """What a row's meta holds of its lines."""
    return {TAG: [asdict(line) for line in lines]}


def lines_of(samples: Mapping[str, list]) -> list[list[Line]]:
    """The lines of every row of a batch, as ocr_mapper noted them; UserError for a row without."""
    from data_juicer.utils.constant import Fields

    metas = samples.get(Fields.meta) or [{}]
    if any(TAG not in meta for meta in metas):
        raise UserError("the image was not read: put ocr_mapper before, and behind what makes new images")
    return [[Line(**line) for line in meta[TAG]] for meta in metas]


def confident(lines: Sequence[Line], confidence: float) -> list[Line]:
    """Lines of at least this confidence that a caption can quote: of two letters or digits and more, without
    tokens of the model, each text once."""
    by_text: dict[str, Line] = {}
    for line in lines:
        quotable = row_problem({"id": "-", "text": text_of(line.text), "images": ["-"]}) is None
        if line.confidence >= confidence and sum(map(str.isalnum, line.text)) > 1 and quotable:
            by_text.setdefault(line.text.lower(), line)
    return list(by_text.values())
