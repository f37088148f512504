"""The LAION aesthetics predictor, version 2, as published on the Hugging Face hub by shunk031: CLIP's image
embedding and linear layers.

Data-Juicer's `image_aesthetics_filter` takes the class from the package simple-aesthetics-predictor, which
needs transformers before 5. The names of the weights are those of the published file.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.utils import ModelOutput


@dataclass
class Scores(ModelOutput):
    """logits: [rows, 1], from 0 (poor) to about 10."""

    logits: torch.Tensor | None = None


class AestheticsPredictor(CLIPVisionModelWithProjection):
    """CLIP's vision tower and projection, and on the normalised embedding five linear layers with nothing but
    dropout between them."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        widths = (config.projection_dim, 1024, 128, 64, 16, 1)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [
                nn.Linear(before, after),
                *([nn.Dropout((0.2, 0.2, 0.1)[number])] if number < 3 else []),
            ]
        self.layers = nn.Sequential(*layers)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> Scores:
        """Scores of images [rows, 3, height, width]."""
        embedding = super().forward(pixel_values=pixel_values).image_embeds
        return Scores(self.layers(embedding / embedding.norm(dim=-1, keepdim=True)))
