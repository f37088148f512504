"""Make torchvision importable beside a CPU build of torch.

The wheel of torchvision on the package index is linked to CUDA; without CUDA its compiled operators do not
load, and the import fails because it registers fake versions of two operators that do not exist. Declaring
their schemas first is enough: everything but the compiled operators (nms, roi_align, image decoding), which
nothing here calls, works.
"""

import sys
from importlib.abc import MetaPathFinder


class _DeclareOperators(MetaPathFinder):
    """Finds nothing; declares the operators just before torchvision is first imported, so that torch is not
    imported for it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare()


def declare() -> None:
    """Declare the two operators when torch has no CUDA."""
    import torch

    if torch.version.cuda is None:
        torch.library.define(
            "torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
        torch.library.define(
            "torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )


def install() -> None:
    """Call once, before anything imports torchvision."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _DeclareOperators())
