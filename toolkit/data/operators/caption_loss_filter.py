"""How hard every row is to a model that was trained: the mean loss of its caption's tokens, given its image.

Rows with a high loss are what a model has yet to learn, as online hard example mining has it (Shrivastava et
al. 2016, arXiv 1604.03540), or captions that are wrong, whose loss stays high (Arpit et al. 2017, arXiv
1706.05394). Later versions of Data-Juicer have an `image_ohem_selector` for the former, whose loss is Python
of the user's, which no recipe may hold. Here either limit can be set, also as a share of the rows:

    - caption_loss_filter:
        hf_mgm: "{mgm}"
        max_loss: {quantile: 0.5}
"""

import sys
from functools import partial
from typing import Any

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields
from data_juicer.utils.mm_utils import load_image
from data_juicer.utils.model_utils import get_model
from pydantic import PositiveInt
from torch.nn.functional import pad

from toolkit.data.batches import Inputs, compute, model_folder, padded
from toolkit.data.samples import caption_of, only_images
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.labelled import values_at_labels
from toolkit.mgm.layout import TokenRow, expand
from toolkit.mgm.loss import token_losses
from toolkit.mgm.processor import pixels
from toolkit.mgm.text import IMAGE, encode, template_of

NAME = "caption_loss_filter"
Item = tuple[str, TokenRow]  # an image's path; what the model reads, padded to a length that others share


def load_model(folder: str, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """The MGM in `folder` and its tokenizer."""
    from toolkit.mgm.checkpoint import load_checkpoint
    from toolkit.mgm.tokenizer import load_tokenizer

    model = load_checkpoint(folder, dtype, device)
    return model.eval(), load_tokenizer(folder, model.mgm.model_max_length)


@OPERATORS.register_module(NAME)
class CaptionLossFilter(Filter):
    """Keep rows (one image each) whose loss lies within `min_loss` and `max_loss`.

    The statistic, `caption_loss`, is the mean cross-entropy of the caption's tokens and its end in nats, as
    training computes it, by the MGM in the folder `hf_mgm` (official layout, as `train merge` writes it; bf16
    on a GPU, else float32); rounded to 4 digits, 0 for an empty caption. Every row is asked `prompt`,
    whatever the seed asks about it. `rows_at_once` rows (16 on a GPU, else 4) are computed together, those
    whose captions round up to the same number of tokens.
    """

    _accelerator = "cuda"
    _batched_op = True
    _reads = "both"

    # Data-Juicer's configuration wants a default for every argument; the toolkit insists on a local folder.
    def __init__(
        self,
        hf_mgm: str = "YanweiLi/MGM-2B",
        min_loss: float = 0.0,
        max_loss: float = sys.maxsize,
        prompt: str = "Give a short caption.",
        rows_at_once: PositiveInt | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("batch_size", 4096)
        super().__init__(*args, **kwargs)
        self.min_loss, self.max_loss, self.prompt = min_loss, max_loss, prompt
        self.rows_at_once = rows_at_once or (16 if self.use_cuda() else 4)
        dtype = torch.bfloat16 if self.use_cuda() else torch.float32  # as in training
        self.model_key = partial(load_model, model_folder(hf_mgm, "an MGM"), dtype)

    def compute_stats_batched(self, samples: dict[str, list], rank: int | None = None) -> dict[str, list]:
        """Add the statistic to any number of rows. A row without exactly one image raises ValueError."""
        paths = only_images(samples[self.image_key])
        model, tokenizer = get_model(self.model_key, rank, self.use_cuda())
        template = template_of(tokenizer)
        rows = []
        for text in samples[self.text_key]:
            turns = [
                {"from": "human", "value": f"{IMAGE}\n{self.prompt}"},
                {"from": "gpt", "value": caption_of(text)},
            ]
            ids, labels = map(torch.tensor, encode(turns, tokenizer, template, has_image=True))
            rows.append(expand(ids, labels, model.tokens_per_image, model.mgm.model_max_length))
        items = [(path, filled(row, model.pad_id)) for path, row in zip(paths, rows, strict=True)]

        def losses(inputs: Inputs) -> list[list[float]]:
            parts = zip(inputs["ids"].cpu(), inputs["labels"].cpu(), strict=True)
            tokens = [TokenRow(ids, labels, images=1) for ids, labels in parts]
            values = values_at_labels(model, tokens, inputs["pixels"], model.device, token_losses)
            return [of_row.tolist() for of_row in values]

        prepare = partial(_prepare, model.mgm)
        values = compute(items, prepare, losses, self.rows_at_once, model.device, group=_shape)
        for statistics, row, value in zip(samples[Fields.stats], rows, values, strict=True):
            count = row.predictions  # the others are the filling's
            statistics["caption_loss"] = round(sum(value[:count]) / max(count, 1), 4)
        return samples

    def process_single(self, sample: dict[str, Any]) -> bool:
        """True for a row that is kept."""
        return self.get_keep_boolean(sample[Fields.stats]["caption_loss"], self.min_loss, self.max_loss)


def filled(row: TokenRow, token: int) -> TokenRow:
    """The row with `token` behind it, labelled, until its number of predictions is one that many rows share.
    What comes before sees none of it."""
    assert row.labels is not None
    end = (0, padded(row.predictions) - row.predictions)
    return TokenRow(pad(row.ids, end, value=token), pad(row.labels, end, value=token), row.images)


def _shape(item: Item) -> tuple[int, int]:
    """Numbers of a row by which all shapes of a computation follow: its tokens and predictions."""
    return len(item[1].ids), item[1].predictions


def _prepare(config: MGMConfig, items: list[Item]) -> Inputs:
    """What the model reads of some rows of one shape."""
    return {
        "ids": torch.stack([row.ids for _, row in items]),
        "labels": torch.stack([row.labels for _, row in items if row.labels is not None]),
        "pixels": torch.stack([torch.from_numpy(pixels(load_image(path), config)) for path, _ in items]),
    }
