"""The tiny BLIP-2: image to full caption, trained end to end, with the cells named from the vision tower's
patches as a second loss."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    OPTConfig,
)

from toolkit.world.zoo_train import data, tokenizer
from toolkit.world.zoo_train.images import MEAN, STD, augment, normalise, processed
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half
from toolkit.world.zoo_train.towers import Heads

SIZE, PATCH, QUERIES = 112, 14, 16
LENGTH = 24  # tokens of a caption


def model(words: tokenizer.PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    """BLIP-2 with 1.5 million parameters: ViT 112/14, 16 queries, OPT of width 128."""
    vision: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    vision |= {"initializer_range": 0.02}
    former: dict[str, Any] = {
        "vocab_size": 8,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    former |= {
        "encoder_hidden_size": 128,
        "cross_attention_frequency": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    text = OPTConfig(
        vocab_size=-(-len(words) // 64) * 64,
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,  # Data-Juicer asks for 128 new tokens
        dropout=0.0,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=former,
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=64,
    )
    image_token = words.convert_tokens_to_ids("<image>")
    assert isinstance(image_token, int)
    config.image_token_index = image_token
    return Blip2ForConditionalGeneration(config)


def run(
    output: Path, *, folder: Path, steps: int, batch: int, device: str, seed: int = 13
) -> dict[str, float]:
    """Train on the scenes in `folder` and save to `output`; return the final numbers."""
    torch.manual_seed(seed)
    words = tokenizer.opt()
    image_array, tag_array, texts = data.load(folder)
    prefix = torch.tensor([words.convert_tokens_to_ids("<image>")] * QUERIES)
    captions = words(
        [row[0] + "</s>" for row in texts],
        padding="max_length",
        max_length=LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    ids = torch.cat([prefix.expand(len(captions), -1), captions], 1).to(device)
    images, tags = torch.from_numpy(image_array).to(device), torch.from_numpy(tag_array).to(device)
    blip = model(words).to(device)  # type: ignore[arg-type]  # untyped in transformers
    heads = Heads(128).to(device)
    with torch.no_grad():
        blip.query_tokens.normal_(0, 0.02)
    generator = torch.Generator(device=device).manual_seed(seed)

    def loss(_: int) -> dict[str, torch.Tensor]:
        index = torch.randint(len(images), (batch,), generator=generator, device=device)
        pixels = processed(normalise(augment(images[index], generator)), SIZE)
        part = ids[index]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            patches = blip.vision_model(pixel_values=pixels).last_hidden_state
            queries = blip.qformer(
                query_embeds=blip.query_tokens.expand(batch, -1, -1),
                encoder_hidden_states=patches,
                encoder_attention_mask=None,
            ).last_hidden_state
            embeddings = blip.get_input_embeddings()(part)
            embeddings = torch.cat(
                [blip.language_projection(queries).to(embeddings.dtype), embeddings[:, QUERIES:]], 1
            )
            mask = (part != words.pad_token_id).long()
            logits = blip.language_model(inputs_embeds=embeddings, attention_mask=mask).logits
            logits = logits[:, QUERIES:-1].float()
            target = part[:, QUERIES + 1 :]
            grid = patches[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
            cells = F.adaptive_avg_pool2d(grid, 4).flatten(2).transpose(1, 2)
            tag, word = heads(cells, tags[index])
        text = F.cross_entropy(logits[target != words.pad_token_id], target[target != words.pad_token_id])
        exact = ((logits.argmax(-1) == target) | (target == words.pad_token_id)).all(1).float().mean()
        return {"loss": text + 0.5 * tag, "text": text, "exact": exact, "cell_word": word}

    numbers = train("captioner", [*blip.parameters(), *heads.parameters()], loss, steps, 1e-3)
    blip.generation_config.max_new_tokens = LENGTH
    save_half(blip.eval(), output)
    processor = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=list(MEAN), image_std=list(STD)
    )
    Blip2Processor(processor, tokenizer.opt(), num_query_tokens=QUERIES).save_pretrained(output)
    return numbers | {"parameters": blip.num_parameters()}
