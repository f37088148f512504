"""MGMForCausalLM: Gemma with image tokens in place of <image>.

Modules are named so that `state_dict()` has the official checkpoint's keys: everything under `model.`, lm_head beside it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, GemmaForCausalLM

from toolkit.mgm.config import MGMConfig
from toolkit.mgm.convnext import ConvNextTower, concatenate
from toolkit.mgm.mining import mine, projector

IGNORE_INDEX = -100  # labels that carry no loss
IMAGE_TOKEN_INDEX = -200  # stands for one image in input_ids
TRAINED_NAMES = ("mm_projector", "vlm_uni")  # the modules between towers and language model


@dataclass
class Spliced:
    """Sequences with image tokens in place: embeds [B, L, d] (scaled as Gemma's own), mask [B, L] bool, labels [B, L] or None."""

    embeds: Tensor
    mask: Tensor
    labels: Tensor | None


class MGMForCausalLM(GemmaForCausalLM):
    """Gemma-based MGM; `forward` and `generate` are Gemma's, on `inputs_embeds` made by `splice`."""

    def __init__(self, config: MGMConfig, attention: str = "sdpa") -> None:
        gemma = config.gemma_config()
        gemma._attn_implementation = attention
        super().__init__(gemma)
        self.mgm = config
        clip_width, width, aux_width = config.clip["hidden_size"], gemma.hidden_size, sum(config.dims)
        clip = config.clip_config()
        clip._attn_implementation = attention
        # the official names nest the CLIP tower three levels deep
        self.model.vision_tower = nn.ModuleDict({"vision_tower": nn.ModuleDict({"vision_model": CLIPVisionModel(clip)})})
        self.model.vision_tower_aux = ConvNextTower(config.depths, config.dims)
        self.model.mm_projector = nn.Sequential(nn.Linear(clip_width, width), nn.GELU(), nn.Linear(width, width))
        self.model.vlm_uni_query_projector = projector(clip_width, clip_width)
        self.model.vlm_uni_aux_projector = projector(aux_width, clip_width)
        self.model.vlm_uni_val_projector = projector(aux_width, clip_width)
        self.model.vision_tower.requires_grad_(False)
        self.model.vision_tower_aux.requires_grad_(False)

    @property
    def clip(self) -> CLIPVisionModel:
        """The low-resolution tower."""
        return self.model.vision_tower["vision_tower"]["vision_model"]

    def train(self, mode: bool = True) -> "MGMForCausalLM":
        """As usual, but the frozen towers always evaluate."""
        super().train(mode)
        self.model.vision_tower.eval()
        self.model.vision_tower_aux.eval()
        return self

    @torch.no_grad()
    def clip_features(self, images: Tensor) -> Tensor:
        """[N, 3, s, s] -> patch tokens of the selected layer without the class token, [N, T, d]; s is CLIP's own side."""
        output = self.clip(pixel_values=images.to(self.clip.dtype), output_hidden_states=True)
        return output.hidden_states[self.mgm.select_layer][:, 1:].to(images.dtype)

    @torch.no_grad()
    def aux_features(self, images_aux: Tensor) -> Tensor:
        """[B, 3, S, S] -> all four ConvNeXt maps at S / 4, [B, sum(dims), S/4, S/4]."""
        weight = self.model.vision_tower_aux.vision_stem[0].weight
        return concatenate(self.model.vision_tower_aux(images_aux.to(weight.dtype)))

    def fuse(self, low: Tensor, high: Tensor) -> Tensor:
        """Low-resolution tokens plus what they mine from the high-resolution map, [B, T, d]."""
        model = self.model
        return low + mine(low, high, model.vlm_uni_query_projector, model.vlm_uni_aux_projector, model.vlm_uni_val_projector)

    def fused_tokens(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """The projector's input.

        images [B, 3, s, s], or [B, g*g (+1), 3, s, s] with a grid: crops row-major, the whole image last. images_aux [B, 3, S, S].
        Returns [B, T, d]; with a grid T counts the whole image's tokens first, then the crops'.
        """
        high = self.aux_features(images_aux)
        if images.ndim == 4:
            return self.fuse(self.clip_features(images), high)
        grid, batch = self.mgm.image_grid, len(images)
        crops = images[:, : grid * grid].flatten(0, 1)
        side = high.shape[-1] // grid
        blocks = high.reshape(batch, -1, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        tokens = self.fuse(self.clip_features(crops), blocks).reshape(batch, -1, self.mgm.clip["hidden_size"])
        if not self.mgm.image_global:
            return tokens
        small = F.interpolate(high.float(), scale_factor=1 / grid, mode="bilinear", align_corners=False).to(high.dtype)
        return torch.cat([self.fuse(self.clip_features(images[:, -1]), small), tokens], dim=1)

    def image_tokens(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """[B, T, hidden size of Gemma], not yet scaled by sqrt(hidden size)."""
        return self.model.mm_projector(self.fused_tokens(images, images_aux))

    def splice(
        self, input_ids: Tensor, mask: Tensor | None, labels: Tensor | None, images: Tensor, images_aux: Tensor, *, side: str | None = None
    ) -> Spliced:
        """Replace each IMAGE_TOKEN_INDEX by its image's tokens, truncate to model_max_length, pad with zeros on `side`.

        input_ids, mask, labels [B, l]. Images are consumed in order, one a placeholder; a row without a placeholder consumes one
        too, so text-only rows carry a dummy. The caller's padding (mask False) is dropped first.
        """
        tokens = self.image_tokens(images, images_aux)
        # Gemma multiplies whatever it is fed by sqrt(hidden); current transformers does so inside embed_tokens only.
        tokens = tokens * self.config.hidden_size**0.5
        used, rows = 0, []
        for row, ids in enumerate(input_ids):
            keep = slice(None) if mask is None else mask[row].bool()
            ids = ids[keep]
            target = None if labels is None else labels[row][keep]
            places = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
            pieces, targets, start = [], [], 0
            for place in [*places, len(ids)]:
                pieces.append(self.model.embed_tokens(ids[start:place]))
                if target is not None:
                    targets.append(target[start:place])
                if place < len(ids):
                    pieces.append(tokens[used].to(pieces[0].dtype))
                    if target is not None:
                        targets.append(target.new_full((tokens.shape[1],), IGNORE_INDEX))
                    used += 1
                start = place + 1
            if not places:
                pieces.append(tokens[used][:0].to(pieces[0].dtype))  # nothing, but the projector's gradient is then zero and not absent
                used += 1
            limit = self.mgm.model_max_length
            rows.append((torch.cat(pieces)[:limit], torch.cat(targets)[:limit] if targets else None))
        return self._pad(rows, side or self.mgm.padding_side)

    @staticmethod
    def _pad(rows: list[tuple[Tensor, Tensor | None]], side: str) -> Spliced:
        longest = max(len(embeds) for embeds, _ in rows)
        embeds, masks, labels = [], [], []
        for row, target in rows:
            gap = longest - len(row)
            widths = (gap, 0) if side == "left" else (0, gap)
            embeds.append(F.pad(row, (0, 0, *widths)))
            masks.append(F.pad(torch.ones(len(row), dtype=torch.bool, device=row.device), widths, value=False))
            if target is not None:
                labels.append(F.pad(target, widths, value=IGNORE_INDEX))
        return Spliced(torch.stack(embeds), torch.stack(masks), torch.stack(labels) if labels else None)

    def loss(self, spliced: Spliced) -> Tensor:
        """Mean cross-entropy in float32 over the labelled positions; logits are made for these alone."""
        hidden = self.model(inputs_embeds=spliced.embeds, attention_mask=spliced.mask, use_cache=False).last_hidden_state
        target = spliced.labels[:, 1:]
        chosen = target != IGNORE_INDEX
        logits = self.lm_head(hidden[:, :-1][chosen]).float()
        # a batch whose every label is masked has no loss; the sum keeps the graph and gives zero instead of nan
        return F.cross_entropy(logits, target[chosen], reduction="sum") / max(int(chosen.sum()), 1)

    def logits(self, spliced: Spliced) -> Tensor:
        """[B, L, vocabulary] in float32."""
        return self(inputs_embeds=spliced.embeds, attention_mask=spliced.mask, use_cache=False).logits.float()

    @torch.inference_mode()
    def greedy(self, input_ids: Tensor, mask: Tensor | None, images: Tensor, images_aux: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy continuation of left-aligned prompts: new token ids [B, n], filled with the pad id after the end of sequence."""
        spliced = self.splice(input_ids, mask, None, images, images_aux, side="left")
        return self.generate(
            inputs_embeds=spliced.embeds,
            attention_mask=spliced.mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.config.eos_token_id,
            pad_token_id=self.config.pad_token_id,
        )
