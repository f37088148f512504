"""MGM for transformers' Auto classes: part of an exported folder, loaded with `trust_remote_code=True`.

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
ids = model.generate(**processor(images=image, text="What is on the sign?"), max_new_tokens=32)
print(processor.decode(ids[0]))
"""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GemmaConfig, LlamaConfig

from toolkit.export.parts import MGMConfig
from toolkit.mgm.model import MGMForCausalLM, MGMGemma, MGMLlama

if int(transformers.__version__.split(".")[0]) < 5:  # before, Gemma's embeddings are scaled elsewhere
    raise ImportError(f"this model needs transformers 5 or newer, {transformers.__version__} is installed")


class MGMGemmaConfig(GemmaConfig):
    """Gemma's configuration with MGM's keys. The activation is what is written: "gelu" is exact."""

    model_type = "mgm_gemma"

    def __post_init__(self, **kwargs: Any) -> None:
        activation = self.hidden_act
        super().__post_init__(**kwargs)
        self.hidden_act = activation


class MGMLlamaConfig(LlamaConfig):
    """Llama's configuration with MGM's keys."""

    model_type = "mgm"


class _Hub(MGMForCausalLM):
    """A model made of a configuration of transformers, which takes ids with a placeholder for each image."""

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        # in an exported folder `parts` stands for toolkit.mgm.config
        settings = MGMConfig.of(config)
        super().__init__(settings, config._attn_implementation or "sdpa")  # type: ignore[arg-type]

    def forward(
        self,
        input_ids: Tensor | None = None,
        images: Tensor | None = None,
        images_aux: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the language model's. images [B, 3, s, s] and images_aux [B, 3, S, S]: what the processor makes;
        a placeholder in input_ids [B, l] becomes its image's tokens, so logits are longer."""
        if images is not None:
            kwargs |= self._embedded(input_ids, attention_mask, images, images_aux)
        else:
            kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        return super().forward(**kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        images: Tensor | None = None,
        images_aux: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """New ids [B, n] after input_ids [B, l] with images; all else as in transformers."""
        if images is not None:
            kwargs |= self._embedded(input_ids, attention_mask, images, images_aux)
        else:
            kwargs |= {"inputs": input_ids, "attention_mask": attention_mask}
        return super().generate(**kwargs)  # type: ignore[misc]  # of the language model's class

    def _embedded(
        self, input_ids: Tensor | None, mask: Tensor | None, images: Tensor, images_aux: Tensor | None
    ) -> dict[str, Tensor]:
        if input_ids is None or images_aux is None:
            raise ValueError("images are given with input_ids and images_aux")
        low, high = images.to(self.dtype), images_aux.to(self.dtype)  # the processor's are float32
        spliced = self.splice(input_ids, mask, None, low, high, side="left")
        return {"inputs_embeds": spliced.embeds, "attention_mask": spliced.layout.mask}


class MGMGemmaForCausalLM(_Hub, MGMGemma):  # type: ignore[misc]  # `generate` takes other arguments
    """MGM-2B's kind."""

    config_class = MGMGemmaConfig


class MGMLlamaForCausalLM(_Hub, MGMLlama):  # type: ignore[misc]
    """The kind of MGM-7B, 8B and 13B."""

    config_class = MGMLlamaConfig
