"""What an operator is: its kind, what of a row it reads, and what decides its results."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit import code
from toolkit.contest.records import versions
from toolkit.data.engine import juicer
from toolkit.data.recipe import Step, allowed, named_files, signature
from toolkit.data.recipe.limits import LIMIT
from toolkit.files import sha256

IMAGES_ONLY = {  # of Data-Juicer's own
    "image_aesthetics_filter", "image_aspect_ratio_filter", "image_face_count_filter",
    "image_face_ratio_filter", "image_shape_filter", "image_size_filter", "image_subplot_filter",
}  # fmt: skip
# How a result is computed, not what it is.
EXECUTION = {
    "accelerator",
    "batch_size",
    "cpu_required",
    "gpu_required",
    "mem_required",
    "memory",
    "num_cpus",
    "num_gpus",
    "save_dir",
}
KEEPING = re.compile(r"any_or_all|reversed_range|min_closed_interval|max_closed_interval")


def reads(instance: Any) -> str:
    """What of a row decides an operator's result: "text", "image" or "both". The project's own operators say
    so as `_reads`."""
    if instance._name in IMAGES_ONLY or (
        instance._name == "image_deduplicator" and not instance.consider_text
    ):
        return "image"
    stock = type(instance).__module__.startswith("data_juicer.")
    only_text = stock and "image" not in inspect.getsource(type(instance))
    return getattr(instance, "_reads", "text" if only_text else "both")


def limits(kind: type) -> set[str]:
    """Arguments of a filter that its statistics do not depend on: thresholds, and how they are applied."""
    from data_juicer.ops import Filter

    if not issubclass(kind, Filter):
        return set()
    own_classes = [ancestor for ancestor in kind.__mro__ if ancestor not in Filter.__mro__]
    source = "".join(
        inspect.getsource(method)
        for own_class in own_classes
        for name, method in vars(own_class).items()
        if inspect.isfunction(method) and name not in ("__init__", "process_single", "process_batched")
    )
    names = {name for name in signature(kind) if LIMIT.match(name) or KEEPING.match(name)}
    return {name for name in names if not re.search(rf"\bself\.{name}\b", source)}


def computed(step: Step, raw_arguments: dict[str, Any], folder_digest: Callable[[Path], str]) -> str:
    """What decides a step's results apart from the row, as one text: the key of its statistics in the store.

    `raw_arguments`: the step's arguments as in the recipe, where `{clip}` stands for a model; its folder
    enters by its digest, not by its place.
    """
    instance = juicer.operator(step)
    kind = type(instance)
    apart = limits(kind) | EXECUTION
    arguments = {
        name: folder_digest(Path(value)) if allowed.role(name, raw_arguments.get(name)) else value
        for name, value in step.arguments.items()
        if name not in apart
    }
    packages = [
        "py-data-juicer",
        "pillow",
        *(("torch", "transformers") if kind._accelerator == "cuda" else ()),
        *extra_packages(step),
    ]
    return json.dumps(
        {
            "operator": step.operator,
            "arguments": arguments,
            "files": [sha256(path) for path in named_files(raw_arguments)],
            "source": _source(kind),
            "engine": sha256(Path(juicer.__file__)),
            "versions": versions(*packages),
            "device": "cuda" if instance.use_cuda() else "cpu",
        },
        sort_keys=True,
    )


def _source(kind: type) -> str:
    """Digest of an operator's code: of Data-Juicer's module, and of the toolkit's modules that decide it."""
    if kind.__module__.startswith("toolkit."):
        return code.digest(kind.__module__)
    return sha256(Path(inspect.getfile(kind)))


def kind(step: Step) -> str:
    """ "filter", "mapper", "deduplicator" or "selector"."""
    from data_juicer.ops import Deduplicator, Filter, Mapper

    kinds = {"filter": Filter, "mapper": Mapper, "deduplicator": Deduplicator}
    return next((name for name, base in kinds.items() if isinstance(juicer.operator(step), base)), "selector")


def has_model(step: Step) -> bool:
    """Whether the operator runs a model, on a GPU where there is one, or by packages of its own."""
    return type(juicer.operator(step))._accelerator == "cuda" or bool(extra_packages(step))


def extra_packages(step: Step) -> tuple[str, ...]:
    """Packages that the operator alone needs and that decide its results."""
    return getattr(juicer.operator(step), "_packages", ())


def paid(step: Step) -> bool:
    """Whether the operator costs money: it asks a service on the network."""
    return getattr(juicer.operator(step), "_paid", False)


def default(step: Step, argument: str) -> Any:
    """The default of an operator's argument."""
    return signature(type(juicer.operator(step)))[argument].default


def effective_limits(step: Step, resolved: dict[str, Any]) -> dict[str, Any]:
    """The limits that a filter holds rows to, defaults included, but for those that hold nothing back."""
    parameters = signature(type(juicer.operator(step)))
    arguments = (
        {name: parameter.default for name, parameter in parameters.items()} | step.arguments | resolved
    )
    limits = {
        name: value for name, value in arguments.items() if LIMIT.match(name) and not isinstance(value, bool)
    }
    return {name: value for name, value in limits.items() if value not in (None, sys.maxsize)}
