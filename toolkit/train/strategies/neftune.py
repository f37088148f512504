"""Noisy embeddings (Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv
2310.05914): in training each number of a row's input embeddings, n tokens of width d, gets uniform noise
between -ALPHA / sqrt(n d) and ALPHA / sqrt(n d). In evaluation there is none.

The noise of a row follows from seed, step and row, whatever it is padded with and wherever it is computed. As
with a hook at the table of embeddings, it is scaled as the language model scales these; image tokens are
input embeddings like others.
"""

from dataclasses import replace

import torch
from torch import Tensor

from toolkit.mgm.model import MGMForCausalLM
from toolkit.train.strategies.base import Pass, Strategy

ALPHA = 5.0  # the smallest of the paper's 5, 10 and 15


class NEFTune(Strategy):
    """Noise on the embeddings of a pass."""

    def loss(self, model: MGMForCausalLM, part: Pass) -> Tensor:
        embeds = part.embeds
        noise = torch.zeros_like(embeds)
        for place, item in enumerate(part.items):
            length, width = len(item.row.ids), embeds.shape[2]
            generator = torch.Generator(embeds.device).manual_seed(self.drawn(part.step, item.sample.index))
            uniform = torch.rand(length, width, generator=generator, device=embeds.device)
            noise[place, :length] = (2 * uniform - 1) * (
                ALPHA / (length * width) ** 0.5 * model.mgm.language.embedding_scale
            )
        return super().loss(model, replace(part, embeds=embeds + noise))
