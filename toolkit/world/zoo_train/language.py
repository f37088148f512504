"""The tiny Gemma: trained on the world's conversations, the image being a 4 x 4 map of words.

That is what a perfect projector would say at each image token, so that the frozen model can use projected
tokens in pretraining.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from toolkit.mgm.text import IMAGE, TEMPLATES
from toolkit.world.zoo_train import data, tokenizer
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half

CELLS = 16  # image tokens


def model(vocab_size: int) -> GemmaForCausalLM:
    """Gemma with 0.4 million parameters."""
    config = GemmaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.05,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        tie_word_embeddings=True,
    )
    # the exact one, as MGM runs Gemma; the constructor would turn it into the tanh form
    config.hidden_act = "gelu"
    return GemmaForCausalLM(config)


def image_place(words: PreTrainedTokenizerFast, template: str) -> int:
    """Where the first image token of a conversation stands."""
    before, _ = TEMPLATES[template].prompt([IMAGE, None]).split(IMAGE)
    return len(words(before).input_ids)


def embed(network: PreTrainedModel, batch: dict[str, torch.Tensor], noise: float, place: int) -> torch.Tensor:
    """Scaled input embeddings [n, length, 128], the map's words mixed into the image positions from `place`,
    with noise relative to their size."""
    table = network.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    embeddings = table(batch["ids"].int())
    weights = batch["weights"].float()
    mixed = torch.einsum("nkw,nkwd->nkd", weights, table(batch["map"].int()).float())
    size = table.weight.detach().float().pow(2).mean().sqrt() * getattr(table, "embed_scale", 1.0)
    mixed = mixed + noise * size * torch.rand(len(mixed), 1, 1, device=mixed.device) * torch.randn_like(mixed)
    has_image = (batch["map"] > 0).any(-1).any(-1)[:, None, None]
    shown = embeddings[:, place : place + CELLS]
    image = torch.where(has_image, mixed, shown.float()).to(embeddings.dtype)
    return torch.cat([embeddings[:, :place], image, embeddings[:, place + CELLS :]], 1)


def answer_loss(
    network: PreTrainedModel, batch: dict[str, torch.Tensor], noise: float, place: int
) -> dict[str, torch.Tensor]:
    """Mean cross-entropy over answer tokens, and the share of answers whose first token is right."""
    hidden = network.model(inputs_embeds=embed(network, batch, noise, place)).last_hidden_state[:, :-1]
    position = torch.arange(1, batch["ids"].shape[1], device=hidden.device)
    start, end = batch["answer"].long().unbind(1)
    trained = (position >= start[:, None]) & (position < end[:, None])
    logits = network.lm_head(hidden[trained]).float()
    loss = F.cross_entropy(logits, batch["ids"][:, 1:][trained].long())
    first = (position == start[:, None])[trained]
    return {
        "loss": loss,
        "first_token": (logits.argmax(-1) == batch["ids"][:, 1:][trained])[first].float().mean(),
    }


@torch.no_grad()
def quality(
    network: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    template: str,
    texts: int,
    processes: int,
    device: str,
    seed: int,
) -> dict[str, float]:
    """Shares of unseen answers whose first token is right, by form, from a map of words and from text
    alone."""
    numbers, place = {}, image_place(words, template)
    for name, text_only in (("map", 0.0), ("text", 1.0)):
        rows = {
            key: torch.from_numpy(value).to(device)
            for key, value in data.language(words, texts, seed, processes, text_only, template).items()
        }
        for i, form in enumerate(data.FORMS):
            batch = {key: value[rows["form"] == i] for key, value in rows.items()}
            right = answer_loss(network, batch, 0.0, place)["first_token"].item()
            numbers[f"{name}_{form}"] = round(right, 4)
    return numbers


def fit(
    name: str,
    network: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    template: str,
    output: Path,
    *,
    texts: int,
    steps: int,
    batch: int,
    rate: float,
    processes: int,
    device: str,
    seed: int,
) -> dict[str, float]:
    """Train a language model on conversations of a template and save it to `output`; return the final
    numbers."""
    rows = {
        key: torch.from_numpy(value).to(device)
        for key, value in data.language(words, texts, seed, processes, template=template).items()
    }
    network.to(device)  # type: ignore[arg-type]  # untyped in transformers
    place = image_place(words, template)
    generator = torch.Generator(device=device).manual_seed(seed)

    def loss(_: int) -> dict[str, torch.Tensor]:
        index = torch.randint(texts, (batch,), generator=generator, device=device)
        length = int(rows["answer"][index, 1].max())
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            part = {key: value[index] for key, value in rows.items()}
            return answer_loss(network, part | {"ids": part["ids"][:, :length]}, 0.5, place)

    numbers = train(name, network.parameters(), loss, steps, rate)
    numbers |= quality(network.eval(), words, template, min(texts, 4000), processes, device, seed + 1)
    save_half(network, output)
    words.save_pretrained(output)
    return numbers | {"parameters": network.num_parameters()}


def run(
    output: Path, *, texts: int, steps: int, batch: int, processes: int, device: str, seed: int = 11
) -> dict[str, float]:
    """Train the Gemma and save it to `output`; return the final numbers."""
    torch.manual_seed(seed)
    words = tokenizer.gemma()
    gemma, rate = model(-(-len(words) // 64) * 64), 2e-3
    settings: dict[str, Any] = {"texts": texts, "steps": steps, "batch": batch}
    settings |= {"processes": processes, "device": device}
    return fit("gemma", gemma, words, "gemma", output, rate=rate, seed=seed, **settings)
