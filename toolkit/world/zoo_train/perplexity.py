"""The tiny GPT-2 that has read true captions: how surprised it is tells broken text from whole."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from toolkit.world.zoo_train import data, tokenizer
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half

LENGTH = 32  # tokens of a caption


def run(
    output: Path, *, folder: Path, steps: int, batch: int, device: str, seed: int = 17
) -> dict[str, float]:
    """Train on the true captions of the scenes in `folder` and save to `output`; return the final numbers."""
    torch.manual_seed(seed)
    words = tokenizer.opt()
    texts = [text + "</s>" for row in data.load_lists(folder, "texts") for text in row]
    ids = words(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids.to(device)
    ends: dict[str, Any] = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    size: dict[str, Any] = {
        "vocab_size": -(-len(words) // 64) * 64,
        "n_positions": 128,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 128,
    }
    model = GPT2LMHeadModel(GPT2Config(**size, **ends, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    model.to(device)  # type: ignore[arg-type]  # untyped in transformers
    generator = torch.Generator(device=device).manual_seed(seed)

    def loss(_: int) -> dict[str, torch.Tensor]:
        part = ids[torch.randint(len(ids), (batch,), generator=generator, device=device)]
        logits = model(input_ids=part).logits[:, :-1].float()
        # letters and rare words are in no caption: some likelihood for all keeps them from an endless
        # surprise
        return {
            "loss": F.cross_entropy(
                logits.transpose(1, 2), part[:, 1:], ignore_index=words.pad_token_id, label_smoothing=0.02
            )
        }

    numbers = train("perplexity", model.parameters(), loss, steps, 2e-3)
    save_half(model.eval(), output)
    tokenizer.opt().save_pretrained(output)  # a fresh tokenizer: padding to a length would be saved
    return numbers | {"parameters": model.num_parameters()}
