"""Make torchvision importable beside a CPU build of torch.

The wheel of torchvision on the package index is linked to CUDA; without CUDA its compiled operators do not
load, and the import fails because it registers fake versions of two operators that do not exist. Declaring
their schemas first is enough: everything but the compiled operators (nms, roi_align, image decoding), which
nothing here calls, works.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType


class _Finder(MetaPathFinder):
    """Finds torchvision for `_Loader`: who only asks whether it is installed does not import torch."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name) if name == "torchvision" else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Declares the operators just before torchvision is executed."""

    def exec_module(self, module: ModuleType) -> None:
        declare()
        super().exec_module(module)


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
        sys.meta_path.insert(0, _Finder())
