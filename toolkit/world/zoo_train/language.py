"""The tiny Gemma: trained on the world's conversations, the image being a 4 x 4 map of words.

That is what a perfect projector would say at each image token, so that the frozen model can use projected
tokens in pretraining.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GemmaConfig, GemmaForCausalLM

from toolkit.world.zoo_train import data, tokenizer
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half

IMAGE = slice(4, 20)  # positions of the 16 image tokens: behind <bos><start_of_turn>user\n


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


def embed(gemma: GemmaForCausalLM, batch: dict[str, torch.Tensor], noise: float) -> torch.Tensor:
    """Scaled input embeddings [n, length, 128], the map's words mixed into the image positions, with noise
    relative to their size."""
    table = gemma.get_input_embeddings()
    embeddings = table(batch["ids"].int())
    weights = batch["weights"].float()
    mixed = torch.einsum("nkw,nkwd->nkd", weights, table(batch["map"].int()).float())
    size = table.weight.detach().float().pow(2).mean().sqrt() * table.embed_scale
    mixed = mixed + noise * size * torch.rand(len(mixed), 1, 1, device=mixed.device) * torch.randn_like(mixed)
    has_image = (batch["map"] > 0).any(-1).any(-1)[:, None, None]
    image = torch.where(has_image, mixed, embeddings[:, IMAGE].float()).to(embeddings.dtype)
    return torch.cat([embeddings[:, : IMAGE.start], image, embeddings[:, IMAGE.stop :]], 1)


def answer_loss(
    gemma: GemmaForCausalLM, batch: dict[str, torch.Tensor], noise: float
) -> dict[str, torch.Tensor]:
    """Mean cross-entropy over answer tokens, and the share of answers whose first token is right."""
    hidden = gemma.model(inputs_embeds=embed(gemma, batch, noise)).last_hidden_state[:, :-1]
    position = torch.arange(1, batch["ids"].shape[1], device=hidden.device)
    start, end = batch["answer"].long().unbind(1)
    trained = (position >= start[:, None]) & (position < end[:, None])
    logits = gemma.lm_head(hidden[trained]).float()
    loss = F.cross_entropy(logits, batch["ids"][:, 1:][trained].long())
    first = (position == start[:, None])[trained]
    return {
        "loss": loss,
        "first_token": (logits.argmax(-1) == batch["ids"][:, 1:][trained])[first].float().mean(),
    }


@torch.no_grad()
def quality(
    gemma: GemmaForCausalLM,
    words: tokenizer.PreTrainedTokenizerFast,
    texts: int,
    processes: int,
    device: str,
    seed: int,
) -> dict[str, float]:
    """Shares of unseen answers whose first token is right, by form, from a map of words and from text
    alone."""
    numbers = {}
    for name, text_only in (("map", 0.0), ("text", 1.0)):
        rows = {
            key: torch.from_numpy(value).to(device)
            for key, value in data.language(words, texts, seed, processes, text_only).items()
        }
        for i, form in enumerate(data.FORMS):
            batch = {key: value[rows["form"] == i] for key, value in rows.items()}
            numbers[f"{name}_{form}"] = round(answer_loss(gemma, batch, noise=0.0)["first_token"].item(), 4)
    return numbers


def run(
    output: Path, *, texts: int, steps: int, batch: int, processes: int, device: str, seed: int = 11
) -> dict[str, float]:
    """Train and save to `output`; return the final numbers."""
    torch.manual_seed(seed)
    words = tokenizer.gemma()
    rows = {
        key: torch.from_numpy(value).to(device)
        for key, value in data.language(words, texts, seed, processes).items()
    }
    gemma = model(-(-len(words) // 64) * 64).to(device)
    generator = torch.Generator(device=device).manual_seed(seed)

    def loss(_: int) -> dict[str, torch.Tensor]:
        index = torch.randint(texts, (batch,), generator=generator, device=device)
        length = int(rows["answer"][index, 1].max())
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            part = {key: value[index] for key, value in rows.items()}
            return answer_loss(gemma, part | {"ids": part["ids"][:, :length]}, noise=0.5)

    numbers = train("gemma", gemma.parameters(), loss, steps, 2e-3)
    numbers |= quality(gemma.eval(), words, min(texts, 4000), processes, device, seed + 1)
    save_half(gemma, output)
    words.save_pretrained(output)
    return numbers | {"parameters": gemma.num_parameters()}
