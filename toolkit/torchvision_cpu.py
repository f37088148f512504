"""torchvision beside a CPU-only torch: call `load()` before anything imports torchvision (timm, imagededup, HF image processors).

The index's torchvision is built for CUDA torch: next to the CPU build its compiled extension does not load, so its Python part stops at
two operators that nobody defined. Declaring their signatures is enough for everything but the compiled operators themselves (nms,
roi_align), which this project does not use.
"""

import importlib
import sys

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def load() -> None:
    """Import torchvision, declaring the operators that its extension would have declared where that does not load; repeatable."""
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        # What the failed import left behind would be taken for a finished one.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", SIGNATURE)
        importlib.import_module("torchvision")
