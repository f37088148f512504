"""MGMForCausalLM: a language model with image tokens in place of <image>.

Modules are named so that `state_dict()` has the official checkpoint's keys: everything under `model.`,
lm_head beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionModel, GemmaForCausalLM, LlamaForCausalLM, PreTrainedModel

from toolkit.mgm.config import MGMConfig
from toolkit.mgm.convnext import ConvNextTower
from toolkit.mgm.language import Gemma, LanguageModel, Llama
from toolkit.mgm.layout import Layout, TokenRow, expand, stack
from toolkit.mgm.loss import cross_entropy
from toolkit.mgm.mining import apart, mine, projector, reduced, together

TRAINED_NAMES = ("mm_projector", "vlm_uni")  # the modules between towers and language model

Result = TypeVar("Result")


def without_autocast(
    method: Callable[["MGMForCausalLM", Tensor], Result],
) -> Callable[["MGMForCausalLM", Tensor], Result]:
    """A method that computes in the types of its tensors, the first of its arguments telling the device."""

    @wraps(method)
    def plain(self: "MGMForCausalLM", images: Tensor) -> Result:
        with torch.autocast(images.device.type, enabled=False):
            return method(self, images)

    return plain


@dataclass(frozen=True)
class Spliced:
    """Sequences with image tokens in place: embeds [B, L, d] (scaled as the model's own) and the layout they
    follow."""

    embeds: Tensor
    layout: Layout


@dataclass(frozen=True)
class Features:
    """What the frozen towers make of B images: CLIP's tokens `low` [B, T, d], with a grid [B, crops, T, d],
    and the four ConvNeXt maps [B, C, H, W]."""

    low: Tensor
    maps: list[Tensor]

    def split(self, counts: list[int]) -> list["Features"]:
        """Those of the first counts[0] images, of the next counts[1], …"""
        parts = zip(self.low.split(counts), *(part.split(counts) for part in self.maps), strict=True)
        return [Features(low, maps) for low, *maps in parts]


class MGMForCausalLM(PreTrainedModel):
    """MGM beside a language model's class of transformers, which follows it in a subclass's bases; `forward`
    and `generate` are that one's, on `inputs_embeds` made by `splice`."""

    def __init__(self, config: MGMConfig, attention: str = "sdpa") -> None:
        language = config.language.transformers()
        language._attn_implementation = attention
        super().__init__(language)
        self.mgm = config
        clip_width, width, aux_width = config.clip["hidden_size"], language.hidden_size, sum(config.dims)
        clip = config.clip_config()
        clip._attn_implementation = attention
        # the official names nest the CLIP tower three levels deep
        self.model.vision_tower = nn.ModuleDict(
            {"vision_tower": nn.ModuleDict({"vision_model": CLIPVisionModel(clip)})}
        )
        self.model.vision_tower_aux = ConvNextTower(config.depths, config.dims)
        self.model.mm_projector = nn.Sequential(
            nn.Linear(clip_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.model.vlm_uni_query_projector = projector(clip_width, clip_width)
        self.model.vlm_uni_aux_projector = projector(aux_width, clip_width)
        self.model.vlm_uni_val_projector = projector(aux_width, clip_width)
        self.model.vision_tower.requires_grad_(False)
        self.model.vision_tower_aux.requires_grad_(False)
        # decoder layers, from the first, whose activations are computed again in the backward pass
        self.checkpointed = 0

    @property
    def clip(self) -> CLIPVisionModel:
        """The low-resolution tower."""
        return self.model.vision_tower["vision_tower"]["vision_model"]

    if TYPE_CHECKING:

        def to(self, *_: Any, **__: Any) -> Self: ...  # type: ignore[override]  # untyped in transformers

    def train(self, mode: bool = True) -> "MGMForCausalLM":
        """As usual, but the frozen towers always evaluate."""
        super().train(mode)
        self.model.vision_tower.eval()
        self.model.vision_tower_aux.eval()
        return self

    # The towers are frozen and hold the type they compute in: autocast would only make copies.
    @torch.no_grad()
    @without_autocast
    def clip_features(self, images: Tensor) -> Tensor:
        """[N, 3, s, s] -> patch tokens of the selected layer without the class token, [N, T, d]; s is CLIP's
        own side."""
        clip = self.clip
        hidden = clip.pre_layrnorm(clip.embeddings(images.to(clip.dtype)))
        layers = clip.encoder.layers
        # -2 is what the last layer but one gives
        for layer in layers[: len(layers) + 1 + self.mgm.select_layer]:
            hidden = layer(hidden, None)
        return hidden[:, 1:].to(images.dtype)

    @torch.no_grad()
    @without_autocast
    def aux_maps(self, images_aux: Tensor) -> list[Tensor]:
        """[B, 3, S, S] -> the four ConvNeXt maps, each at its own resolution."""
        tower = self.model.vision_tower_aux
        return tower(images_aux.to(tower.vision_stem[0].weight.dtype))

    def fuse(self, low: Tensor, maps: list[Tensor]) -> Tensor:
        """Low-resolution tokens plus what they mine from the high-resolution maps, [B, T, d]."""
        model = self.model
        return low + mine(
            low, maps, model.vlm_uni_query_projector, model.vlm_uni_aux_projector, model.vlm_uni_val_projector
        )

    def features(self, images: Tensor, images_aux: Tensor) -> Features:
        """What the towers make of images [B, 3, s, s], or [B, g*g (+1), 3, s, s] with a grid: crops
        row-major, the whole image last; images_aux [B, 3, S, S]."""
        maps = self.aux_maps(images_aux)
        if images.ndim == 4:
            return Features(self.clip_features(images), maps)
        return Features(self.clip_features(images.flatten(0, 1)).unflatten(0, images.shape[:2]), maps)

    def fused_tokens(self, features: Features) -> Tensor:
        """The projector's input [B, T, d]; with a grid T counts the whole image's tokens first, then the
        crops'."""
        low, maps, grid = features.low, features.maps, self.mgm.image_grid
        if low.ndim == 3:
            return self.fuse(low, maps)
        # a token of a crop mines where the same token of the whole image would: no map has to be cut
        crops = low[:, : grid * grid].flatten(0, 1)
        tokens = apart(self.fuse(together(crops, grid), maps), grid)
        if not self.mgm.image_global:
            return tokens
        return torch.cat([self.fuse(low[:, -1], [reduced(maps, grid)]), tokens], dim=1)

    def tokens_of(self, features: Features) -> Tensor:
        """[B, T, hidden size of the language model], not yet scaled as embeddings are."""
        return self.model.mm_projector(self.fused_tokens(features))

    def image_tokens(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """`tokens_of` the images' `features`."""
        return self.tokens_of(self.features(images, images_aux))

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer by the model's configuration."""
        end = self.config.eos_token_id
        return end if isinstance(end, list) else [end]

    @property
    def pad_id(self) -> int:
        """What fills ids where no text token stands; nothing is computed from it."""
        return self.config.pad_token_id or 0

    @property
    def tokens_per_image(self) -> int:
        """T of `image_tokens`."""
        tokens = (self.mgm.clip["image_size"] // self.mgm.clip["patch_size"]) ** 2
        return tokens * (self.mgm.image_grid**2 + self.mgm.image_global)

    def embed(self, layout: Layout, tokens: Tensor | None) -> Tensor:
        """[B, L, d]: embeddings of the text, `tokens` [images, T, d] at their places, zeros where nothing
        stands."""
        embeds = self.model.embed_tokens(layout.ids).masked_fill(~layout.mask[..., None], 0)
        if tokens is None:
            return embeds
        # Gemma scales whatever it is fed; current transformers does so inside embed_tokens only.
        tokens = (tokens.flatten(0, 1)[layout.sources] * self.mgm.language.embedding_scale).to(embeds.dtype)
        # no view of another tensor: the first layer would be compiled apart from the others
        row, column = layout.places // embeds.shape[1], layout.places % embeds.shape[1]
        return embeds.index_put((row, column), tokens)

    def splice(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        labels: Tensor | None,
        images: Tensor,
        images_aux: Tensor,
        *,
        side: str | None = None,
    ) -> Spliced:
        """Replace each IMAGE_TOKEN_INDEX by its image's tokens, truncate to model_max_length, pad with zeros
        on `side`.

        input_ids, mask, labels [B, l]. Images are consumed in order, one a placeholder; a row without a
        placeholder consumes one too, so text-only rows carry a dummy, which nothing is computed from. The
        caller's padding (mask False) is dropped first.
        """
        tokens, consumed = self.tokens_per_image, 0
        rows: list[TokenRow] = []
        used: list[int] = []
        for number, ids in enumerate(input_ids.cpu()):
            keep = slice(None) if mask is None else mask[number].bool().cpu()
            row = expand(
                ids[keep],
                None if labels is None else labels[number].cpu()[keep],
                tokens,
                self.mgm.model_max_length,
            )
            used += range(consumed, consumed + row.images)
            consumed += max(row.images, 1)
            rows.append(row)
        layout = stack(rows, tokens, self.pad_id, side or self.mgm.padding_side).to(input_ids.device)
        return Spliced(
            self.embed(layout, self.image_tokens(images[used], images_aux[used]) if used else None), layout
        )

    def decode(self, embeds: Tensor, layout: Layout, positions: Tensor | None = None) -> Tensor:
        """Embeddings [B, L, d] -> normalised last hidden states [B, L, d], or [n, d] at the flat `positions`
        [n] alone.

        In the last layer everything but attention is computed at `positions` only. Rows padded on the right
        need no mask: the causal order, which the fused attentions know, hides the padding from every token.
        """
        decoder, length = self.model, embeds.shape[1]
        masked = layout.padded_left or self.config._attn_implementation == "eager"
        rope = decoder.rotary_emb(embeds, torch.arange(length, device=embeds.device)[None])
        causal = {
            "attention_mask": _causal_mask(layout.mask, embeds.dtype) if masked else None,
            "position_embeddings": rope,
        }
        hidden = embeds
        for number, layer in enumerate(decoder.layers[:-1]):
            if number < self.checkpointed and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, **causal, use_reentrant=False)
            else:
                hidden = layer(hidden, **causal)
        last = decoder.layers[-1]
        hidden = hidden + last.self_attn(hidden_states=last.input_layernorm(hidden), **causal)[0]
        if positions is not None:
            hidden = hidden.flatten(0, 1)[positions]
        return decoder.norm(hidden + last.mlp(last.post_attention_layernorm(hidden)))

    def loss(
        self, embeds: Tensor, layout: Layout, positions: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """Weighted cross-entropy of the next tokens: `targets` [n] int64 and `weights` [n] float32 at the
        flat `positions` [n]."""
        return cross_entropy(self.decode(embeds, layout, positions), self.lm_head.weight, targets, weights)

    def mean_loss(self, spliced: Spliced) -> Tensor:
        """Mean cross-entropy over the labelled positions, as the official forward pass returns; zero where
        there is no label."""
        positions, targets = spliced.layout.predictions()
        weights = torch.full(targets.shape, 1 / max(len(targets), 1), device=targets.device)
        return self.loss(spliced.embeds, spliced.layout, positions, targets, weights)

    def logits(self, spliced: Spliced) -> Tensor:
        """[B, L, vocabulary] in float32."""
        return self.lm_head(self.decode(spliced.embeds, spliced.layout)).float()

    @torch.inference_mode()
    def greedy(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        images: Tensor,
        images_aux: Tensor,
        max_new_tokens: int,
        ends: list[int] | None = None,
    ) -> Tensor:
        """Greedy continuation of left-aligned prompts up to one of the ids `ends` (default: the model's): new
        token ids [B, n], filled with the pad id after it."""
        spliced = self.splice(input_ids, mask, None, images, images_aux, side="left")
        return self.generate(  # type: ignore[operator]  # of the language model's class
            inputs_embeds=spliced.embeds,
            attention_mask=spliced.layout.mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=ends or self.ends,
            pad_token_id=self.pad_id,
        )


class MGMGemma(MGMForCausalLM, GemmaForCausalLM):
    """MGM-2B's kind."""


class MGMLlama(MGMForCausalLM, LlamaForCausalLM):
    """The kind of MGM-7B, 8B and 13B."""


MODELS: dict[type[LanguageModel], type[MGMForCausalLM]] = {Gemma: MGMGemma, Llama: MGMLlama}


def _causal_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, L] bool -> [B, 1, L, L], added to attention scores: causal, without the padding; padding sees
    itself."""
    length = mask.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() & mask[:, None]
    seen |= torch.eye(length, dtype=torch.bool, device=mask.device)
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )[:, None]
