"""Small images first: in the first SHARE of the steps the high-resolution tower sees each image at half its
side, which is a quarter of its work; then at its own.

As in progressive resizing (Tan & Le 2021, "EfficientNetV2: Smaller Models and Faster Training", arXiv
2104.00298, section 4), with two sizes and without its regularisation that grows with them. CLIP's view, whose
side is fixed, stays as it is, and so does the number of tokens: each mines a window of a quarter of the
pixels. Evaluation has images of the full side, so the last steps have them too.
"""

import torch

from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.dataset import Conversations
from toolkit.train.strategies.base import Outset, Strategy

SHARE = 0.5  # of the steps


class Resolution(Strategy):
    """The side of the high-resolution images."""

    def prepare(self, model: MGMForCausalLM, dataset: Conversations, device: torch.device) -> None:
        model.mgm.with_(image_size_aux=model.mgm.image_size_aux // 2)  # a UserError where it cannot be halved

    def order(self, outset: Outset) -> list[int]:
        self.small = int(SHARE * outset.steps)
        return super().order(outset)

    def shrinkage(self, step: int) -> int:
        return 2 if step < self.small else 1
