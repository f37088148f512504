"""Image-text matching by BLIP, many rows at a time: the statistic of Data-Juicer's
`image_text_matching_filter`, which takes one."""

from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import load_image, remove_special_tokens
from data_juicer.utils.model_utils import get_model, prepare_model
from pydantic import PositiveInt

from toolkit.data.batches import Inputs, compute, default_rows, model_folder, padded
from toolkit.data.samples import only_images

NAME = "batched_matching_filter"


@OPERATORS.register_module(NAME)
class BatchedMatchingFilter(Filter):
    """Keep rows (one image each) whose image-text matching score lies within `min_score` and `max_score`.

    The statistic, `image_text_matching_score`, is a list of one number: the probability of a match by BLIP's
    matching head, in float32, as in the stock operator. `hf_blip` is the folder of any HF
    `BlipForImageTextRetrieval`; `rows_at_once` rows (256 on a GPU, else 16) are computed together, those
    whose texts round up to the same number of tokens.
    """

    _accelerator = "cuda"
    _batched_op = True

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_blip: str = "Salesforce/blip-itm-base-coco",
        min_score: float = 0.003,
        max_score: float = 1.0,
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_score, self.max_score = min_score, max_score
        self.rows_at_once = rows_at_once or default_rows(self.use_cuda())
        self.model_key = prepare_model(
            "huggingface",
            pretrained_model_name_or_path=model_folder(hf_blip, "BLIP for matching"),
            dtype=torch.float32,
        )

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        model, processor = get_model(self.model_key, rank, self.use_cuda())
        longest = model.config.text_config.max_position_embeddings
        texts = [remove_special_tokens(text) for text in samples[self.text_key]]
        tokens = processor.tokenizer(texts, truncation=True, max_length=longest).input_ids if texts else []
        lengths = [min(padded(len(row)), longest) for row in tokens]
        items = list(zip(paths, texts, lengths, strict=True))

        def matching(inputs: Inputs) -> list[float]:
            return model(**inputs).itm_score.softmax(-1)[:, 1].tolist()

        values = compute(
            items,
            partial(_prepare, processor),
            matching,
            self.rows_at_once,
            model.device,
            group=lambda item: item[2],
        )
        for statistics, value in zip(samples[Fields.stats], values, strict=True):
            statistics[StatsKeys.image_text_matching_score] = [value]
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        (value,) = sample[Fields.stats][StatsKeys.image_text_matching_score]
        return self.get_keep_boolean(value, self.min_score, self.max_score)


def _prepare(processor: Any, piece: list[tuple[str, str, int]]) -> Inputs:
    """What BLIP reads of some images and texts, these padded to their common length."""
    images, texts = [load_image(path) for path, _, _ in piece], [text for _, text, _ in piece]
    return dict(
        processor(
            text=texts,
            images=images,
            return_tensors="pt",
            truncation=True,
            padding="max_length",
            max_length=piece[0][2],
        )
    )
