"""The project's own Data-Juicer operators, each in a module of its name, imported when it is asked for; those
that stand for stock operators are registered at once.

The folder also serves stock Data-Juicer: `PYTHONPATH=. dj-process --config recipe.yaml
--custom-operator-paths toolkit/data/operators`.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import data_juicer
from data_juicer.ops import OPERATORS
from data_juicer.utils import mm_utils

from toolkit import images

from . import stock_operators  # noqa: F401  (registers them)


def registered(name: str) -> Any:
    """The class of an operator that a recipe may name, Data-Juicer's or the project's; None where there is
    none."""
    if Path(__file__).with_name(f"{name}.py").is_file():
        importlib.import_module(f"{__name__}.{name}")
    return OPERATORS.modules.get(name)


def register_all() -> None:
    """Import every operator, for a Data-Juicer that was given this folder. By name: `toolkit.code` reads here
    that each decides results."""
    from . import (  # noqa: F401
        batched_aesthetics_filter,
        batched_captioning_mapper,
        batched_grounding_recall_filter,
        batched_matching_filter,
        batched_perplexity_filter,
        batched_simhash_deduplicator,
        batched_similarity_filter,
        blank_image_filter,
        caption_agreement_filter,
        caption_concreteness_filter,
        caption_loss_filter,
        caption_note_mapper,
        cluster_uniform_selector,
        embedding_duplicate_selector,
        endpoint_captioning_mapper,
        endpoint_keyword_mapper,
        endpoint_question_answer_mapper,
        endpoint_rewriting_mapper,
        image_augmentation_mapper,
        image_embedding_filter,
        image_nsfw_filter,
        image_watermark_filter,
        keyword_mapper,
        ocr_caption_mapper,
        ocr_filter,
        ocr_mapper,
        ocr_question_answer_mapper,
        placeholder_image_deduplicator,
        question_answer_mapper,
        repeat_mapper,
        sentence_embedding_filter,
        synonym_replacement_mapper,
        text_to_image_mapper,
        weighted_score_selector,
    )


# Data-Juicer's own function turns images as their EXIF says and makes 16-bit greys white; what was imported
# before has a copy of the name.
_stock = mm_utils.load_image
for _module in list(sys.modules.values()):
    if (
        getattr(_module, "__name__", "").startswith(("data_juicer.", __name__))
        and vars(_module).get("load_image") is _stock
    ):
        vars(_module)["load_image"] = images.load


def _executed_later(parent: ModuleType, name: str) -> None:
    """Import a package but for its own file, which is executed when something of it is asked for that is none
    of its modules."""
    spec = importlib.util.find_spec(f"{parent.__name__}.{name}")
    assert spec and spec.loader
    package, execute = importlib.util.module_from_spec(spec), spec.loader.exec_module

    def attribute(missing: str) -> Any:
        del vars(package)["__getattr__"]
        execute(package)
        return getattr(package, missing)

    vars(package)["__getattr__"] = attribute
    vars(parent)[name] = sys.modules[spec.name] = package


# every operator imports a module of it, and its own file imports all executors, with Ray
if "data_juicer.core" not in sys.modules:
    _executed_later(data_juicer, "core")

if __name__ == "operators":
    register_all()
