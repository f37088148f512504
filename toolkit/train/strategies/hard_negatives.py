"""Hard negatives (image-text matching with mined negatives, Li et al. 2021, "Align before Fuse", arXiv
2107.07651): the model also learns to say that a caption does not fit.

SHARE of the rows with an image and one caption become a question whether the caption fits: every other one
with another row's image and the answer no, the rest with the answer yes. The wrong image is the one, of
CANDIDATES rows drawn at random, that CLIP finds most like the right one (cosine of the mean patch features of
the model's own tower; the paper compares image and text). The number of rows stays: there are fewer captions.
A wrong image may happen to fit its caption, and the answer no is false then.
"""

from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import tensors
from toolkit.mgm.text import IMAGE, TEMPLATES
from toolkit.train import distributed
from toolkit.train.dataset import Conversations
from toolkit.train.strategies.base import Strategy
from toolkit.train.sweep import shared_out

SHARE = 0.25
CANDIDATES = 64
QUESTION = f"{IMAGE}\nDoes this caption fit the image?\n{{}}\nAnswer yes or no."


class HardNegatives(Strategy):
    """The rows."""

    def prepare(self, model: MGMForCausalLM, dataset: Conversations, device: torch.device) -> None:
        """Exchange rows. UserError for a template that has no questions."""
        if not TEMPLATES[dataset.read.template].answer:
            raise UserError(
                f"the template {dataset.read.template} drops questions: choose another strategy than "
                "hard-negatives"
            )
        rows, views = dataset.rows, image_features(model, dataset, device)
        generator = numpy.random.default_rng(self.drawn())
        captioned = [place for place, row in enumerate(rows) if "image" in row and _caption(row)]
        chosen = generator.permutation(captioned)[: int(SHARE * len(captioned))].tolist()
        exchanged = list(rows)
        for number, place in enumerate(sorted(chosen)):
            row, caption = rows[place], _caption(rows[place])
            if number % 2 == 0:
                exchanged[place] = _asked(row, row["image"], caption, "yes")
                continue
            drawn = generator.choice(captioned, min(CANDIDATES, len(captioned)), replace=False).tolist()
            others = [
                other
                for other in drawn
                if _caption(rows[other]) != caption and rows[other]["image"] != row["image"]
            ]
            if others:
                likeness = views[others] @ views[place]
                exchanged[place] = _asked(row, rows[others[int(likeness.argmax())]]["image"], caption, "no")
        dataset.rows = exchanged


@torch.no_grad()
def image_features(model: MGMForCausalLM, dataset: Conversations, device: torch.device) -> Tensor:
    """CLIP's mean patch features of each row's image, of length 1: float32 [rows, d]; zeros without image."""
    views = torch.zeros(len(dataset), model.mgm.clip["hidden_size"])
    for samples in shared_out(dataset, device):
        shown = [sample for sample in samples if sample.pixels is not None]
        for sample in shown:
            low, _ = tensors(torch.from_numpy(sample.pixels)[None].to(device), model.mgm)
            view = model.clip_features(low.to(model.clip.dtype)).float().mean(1)
            views[sample.index] = F.normalize(view, dim=-1)[0].cpu()
    return distributed.total(views)


def _caption(row: dict[str, Any]) -> str:
    """The answer of a row with one question; empty for other rows."""
    turns = row["conversations"]
    return turns[1]["value"].strip() if [turn["from"] for turn in turns] == ["human", "gpt"] else ""


def _asked(row: dict[str, Any], image: str, caption: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": QUESTION.format(caption)}, {"from": "gpt", "value": answer}]
    return row | {"image": image, "conversations": turns}
