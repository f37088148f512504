"""The tiny BLIP that tells whether a caption fits an image; it sees through the trained captioner's vision
tower, which is not changed."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

from toolkit.world import words as world
from toolkit.world.zoo_train import data, tokenizer
from toolkit.world.zoo_train.captioner import PATCH, SIZE
from toolkit.world.zoo_train.images import MEAN, STD, augment, normalise, processed
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half

CAPTIONER = Path(__file__).parents[1] / "zoo" / "captioner" / "model.safetensors"
LENGTH = 32  # tokens of a caption


def model(words: tokenizer.PreTrainedTokenizerFast) -> BlipForImageTextRetrieval:
    """BLIP with 1.2 million parameters, 0.75 million of them the captioner's vision tower."""
    common = {"hidden_size": 128, "num_attention_heads": 4, "layer_norm_eps": 1e-6}
    vision = {
        **common,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    text = {
        **common,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "encoder_hidden_size": 128,
        "max_position_embeddings": LENGTH,
    }
    text |= {
        "vocab_size": -(-len(words) // 64) * 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    text |= {
        "bos_token_id": words.bos_token_id,
        "sep_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    blip = BlipForImageTextRetrieval(
        BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=32)
    )
    tower = {
        key: value.float() for key, value in load_file(CAPTIONER).items() if key.startswith("vision_model.")
    }
    unknown = blip.load_state_dict(tower, strict=False).unexpected_keys
    assert not unknown, unknown
    return blip


def run(
    output: Path, *, folder: Path, steps: int, batch: int, device: str, seed: int = 14
) -> dict[str, float]:
    """Train on the scenes in `folder` and save to `output`; return the final numbers.

    Each image gets one true caption, one of another image and one that is wrong in one thing. The second loss
    asks of every word for a colour, kind, number or sign whether the image shows it, which tells the model
    where to look.
    """
    torch.manual_seed(seed)
    words = tokenizer.clip()
    true, nearby_texts = data.load_lists(folder, "texts"), data.load_lists(folder, "nearby")
    encoded = words(
        [text for row in (*true, *nearby_texts) for text in row],
        padding="max_length",
        max_length=LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids.to(device)
    count = len(true) * len(true[0])
    true_texts, nearby = (
        encoded[:count].view(len(true), -1, LENGTH),
        encoded[count:].view(len(nearby_texts), -1, LENGTH),
    )
    vocabulary_words = [
        *world.COLOURS,
        *world.KINDS,
        *world.PLURALS.values(),
        *world.NUMBERS[1:],
        *world.SIGNS,
    ]
    content = torch.zeros(len(words), dtype=torch.bool, device=device)
    content[words.convert_tokens_to_ids(vocabulary_words)] = True
    # the full caption is the first
    present = torch.zeros(len(true), len(words), device=device).scatter_(1, true_texts[:, 0], 1.0)
    blip = model(words).to(device)  # type: ignore[arg-type]  # untyped in transformers
    word_head = torch.nn.Linear(128, 1).to(device)
    blip.vision_model.requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(seed)
    seen = []  # once: the tower does not change
    for part in torch.from_numpy(data.load_images(folder)).split(250):
        pixels = processed(normalise(augment(part.to(device), generator)), SIZE)
        with torch.no_grad():
            seen.append(blip.vision_model(pixel_values=pixels).last_hidden_state.half())
    patches = torch.cat(seen)

    def pick(texts: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return texts[index, torch.randint(texts.shape[1], (len(index),), generator=generator, device=device)]

    def loss(_: int) -> dict[str, torch.Tensor]:
        index = torch.randint(len(patches), (batch,), generator=generator, device=device)
        ids = torch.cat([pick(true_texts, index), pick(true_texts, index.roll(1)), pick(nearby, index)])
        ids = ids[:, : int((ids != words.pad_token_id).sum(1).max())]
        target = torch.arange(3, device=device).repeat_interleave(batch).eq(0).long()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            read = blip.text_encoder(
                input_ids=ids,
                attention_mask=(ids != words.pad_token_id).long(),
                encoder_hidden_states=patches[index].float().repeat(3, 1, 1),
                encoder_attention_mask=torch.ones(
                    3 * batch, patches.shape[1], dtype=torch.long, device=device
                ),
            ).last_hidden_state
            logits, word = blip.itm_head(read[:, 0]).float(), word_head(read)[..., 0].float()
        is_content = content[ids]
        words_loss = F.binary_cross_entropy_with_logits(
            word[is_content], present[index].repeat(3, 1).gather(1, ids)[is_content]
        )
        hit = (logits.argmax(1) == target).float().view(3, batch).mean(1)
        return {
            "loss": F.cross_entropy(logits, target) + words_loss,
            "words": words_loss,
            "true": hit[0],
            "swapped": hit[1],
            "nearby": hit[2],
        }

    learned = [*blip.text_encoder.parameters(), *blip.itm_head.parameters(), *word_head.parameters()]
    numbers = train("matcher", learned, loss, steps, 1e-3)
    save_half(blip.eval(), output)
    processor = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=list(MEAN), image_std=list(STD)
    )
    BlipProcessor(processor, tokenizer.clip()).save_pretrained(output)
    return numbers | {"scenes": len(patches), "parameters": blip.num_parameters()}
