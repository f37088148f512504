"""How much of a caption a detector finds in the image, many rows at a time.

Data-Juicer's `phrase_grounding_recall_filter` takes its noun phrases from a tagger that it downloads, and
gives each box to the phrase that it fits best, at any confidence. Here phrases are found by rule
(toolkit/data/phrases.py), and each is looked for by itself.
"""

from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import load_image, remove_special_tokens
from data_juicer.utils.model_utils import get_model
from pydantic import PositiveInt
from torch import nn

from toolkit.data.batches import Inputs, compute, default_rows, model_folder, padded
from toolkit.data.phrases import HOLLOW, noun_phrases
from toolkit.data.samples import only_images

NAME = "batched_grounding_recall_filter"
LARGE = 0.95  # share of the image that no thing covers: such a box is not counted, as in the stock operator
MOST = 16  # phrases of a caption that are looked for


def load_model(folder: str, device: str) -> tuple[Any, Any]:
    """The detector in `folder` in float32, and its processor."""
    from transformers import AutoProcessor, OwlViTForObjectDetection

    model: nn.Module = OwlViTForObjectDetection.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    return model.to(device).eval(), AutoProcessor.from_pretrained(folder)


@OPERATORS.register_module(NAME)
class BatchedGroundingRecallFilter(Filter):
    """Keep rows (one image each) whose grounding recall lies within `min_recall` and `max_recall`.

    The statistic, `phrase_grounding_recall`, is a list of one number: the share of the caption's noun phrases
    for which the detector has a box of confidence `confidence` or more; 1 for a caption without one.
    `hf_owlvit` is the folder of any HF `OwlViTForObjectDetection`; `rows_at_once` rows (64 on a GPU, else 16)
    are computed together, those with about equally many phrases.
    """

    _accelerator = "cuda"
    _batched_op = True

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_owlvit: str = "google/owlvit-base-patch32",
        min_recall: float = 0.1,
        max_recall: float = 1.0,
        confidence: float = 0.1,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_recall, self.max_recall, self.confidence = min_recall, max_recall, confidence
        self.rows_at_once = rows_at_once or min(64, default_rows(self.use_cuda()))
        self.model_key = partial(load_model, model_folder(hf_owlvit, "OWL-ViT"))

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        model, processor = get_model(self.model_key, rank, self.use_cuda())
        phrases_of_rows = [phrases(remove_special_tokens(text)) for text in samples[self.text_key]]
        items = [(path, row) for path, row in zip(paths, phrases_of_rows, strict=True) if row]
        prepare = partial(_prepare, processor, model.config.text_config.max_position_embeddings)

        def detect(inputs: Inputs) -> list[list[bool]]:
            ids = inputs["input_ids"]  # [rows, phrases, tokens]
            # the end of a phrase is read, and what follows it does not reach it
            mask = torch.ones_like(ids).flatten(0, 1)
            boxes = model(
                input_ids=ids.flatten(0, 1), attention_mask=mask, pixel_values=inputs["pixel_values"]
            )
            sensible = boxes.pred_boxes[..., 2:].prod(-1, keepdim=True) <= LARGE
            return ((boxes.logits.sigmoid() >= self.confidence) & sensible).any(1).tolist()

        hits = iter(compute(items, prepare, detect, self.rows_at_once, model.device, group=_queries))
        for statistics, row in zip(samples[Fields.stats], phrases_of_rows, strict=True):
            recall = sum(next(hits)[: len(row)]) / len(row) if row else 1.0
            statistics[StatsKeys.phrase_grounding_recall] = [recall]
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        (value,) = sample[Fields.stats][StatsKeys.phrase_grounding_recall]
        return self.get_keep_boolean(value, self.min_recall, self.max_recall)


def phrases(caption: str) -> list[str]:
    """Noun phrases that name a thing, each once, at most `MOST`: `a red mug`, but not `a picture`."""
    return list(
        dict.fromkeys(" ".join(phrase) for phrase in noun_phrases(caption) if phrase[-1] not in HOLLOW)
    )[:MOST]


def _queries(item: tuple[str, list[str]]) -> int:
    """Phrases to which a row is padded."""
    return padded(len(item[1]), 4)


def _prepare(processor: Any, longest: int, piece: list[tuple[str, list[str]]]) -> Inputs:
    """What OWL-ViT reads of some images and phrases; a row of zeros stands for no phrase."""
    count = _queries(piece[0])
    ids = torch.zeros(len(piece), count, longest, dtype=torch.long)
    for row, (_, row_phrases) in enumerate(piece):
        read = processor.tokenizer(
            row_phrases, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).input_ids
        ids[row, : len(row_phrases)] = read
    pixels = processor.image_processor(
        [load_image(path) for path, _ in piece], return_tensors="pt"
    ).pixel_values
    return {"input_ids": ids, "pixel_values": pixels}
