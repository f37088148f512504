"""The tiny OWL-ViT: finds what a phrase names, an object by colour and kind or a sign, in the 16 cells that
the tiny CLIP's patches see.

Its vision tower is that of the tiny CLIP, which is not changed: OWL-ViT is built on CLIP, and this detector
can name every cell's content.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
)

from toolkit.world import words as world
from toolkit.world.captions import noun
from toolkit.world.zoo_train import data, tokenizer
from toolkit.world.zoo_train.images import MEAN, STD, augment, normalise, processed
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half
from toolkit.world.zoo_train.towers import LOW, clip_model

CLIP = Path(__file__).parents[1] / "zoo" / "clip" / "model.safetensors"
LENGTH = 8  # tokens of a phrase


def model(words: tokenizer.PreTrainedTokenizerFast) -> OwlViTForObjectDetection:
    """OWL-ViT with 0.6 million parameters, 0.4 million of them CLIP's vision tower; text: 2 layers of width
    64."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
    }
    text |= {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    text |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    vision = clip_model(words).config.vision_config
    assert isinstance(vision, CLIPVisionConfig)
    # without initializer_range the class and box heads begin with weights of deviation 1 and every box at a
    # corner
    owl = OwlViTForObjectDetection(
        OwlViTConfig(
            text_config=text,
            vision_config=vision.to_dict(),
            projection_dim=64,
            initializer_range=0.02,  # type: ignore[call-arg]  # by **kwargs, as of every configuration
        )
    )
    tower = {
        key.replace("pre_layrnorm", "pre_layernorm"): value.float() for key, value in load_file(CLIP).items()
    }
    tower = {f"owlvit.{key}": value for key, value in tower.items() if key.startswith("vision_model.")}
    unknown = owl.load_state_dict(tower, strict=False).unexpected_keys
    assert not unknown, unknown
    with torch.no_grad():  # sharp and doubtful: nearly every phrase names nothing in nearly every cell
        owl.class_head.logit_scale.bias.fill_(10.0)
        owl.class_head.logit_shift.bias.fill_(-0.5)
    return owl


def phrases() -> list[tuple[str, int, int, int]]:
    """What is asked for: a phrase as captions have it, and what it names: colour and kind, or sign, numbered
    as in data.TAGS."""
    rows = []
    for colour, name in enumerate(world.COLOURS, 1):
        for kind, singular in enumerate(world.KINDS, 1):
            many = f"{name} {world.PLURALS[singular]}"
            wordings = [
                f"{name} {singular}",
                noun(name, singular),
                many,
                *(f"{number} {many}" for number in world.NUMBERS[1:]),
            ]
            rows += [(phrase, colour, kind, 0) for phrase in dict.fromkeys(wordings)]
    for sign, word in enumerate(world.SIGNS, 1):
        rows += [(phrase, 0, 0, sign) for phrase in (word, f"{word} sign", f"the word {word}")]
    return rows


def truth(tags: Tensor, queries: Tensor) -> Tensor:
    """bool [n, 16, phrases]: whether a cell shows what a phrase names, from tags [n, 16, 4] and the numbers
    of `phrases`; the last two columns are for `sign` and `a sign`, true of every sign."""
    thing = (tags[:, :, None, :2] == queries[:, :2]).all(-1) & (queries[:, 0] > 0)
    sign = (tags[:, :, None, 3] == queries[:, 2]) & (queries[:, 2] > 0)
    any_sign = tags[:, :, None, 3] > 0
    return torch.cat([thing | sign, any_sign, any_sign], -1)


def boxes_of_cells(things: list[list[list]], tags: Tensor) -> Tensor:
    """Centre and size [n, 16, 4], in units of the image, of the sign in the cells that show it, else of the
    nearest object."""
    slots = max(len(row) for row in things) - 1
    # the sign is last
    corners = torch.tensor(
        [[row[i % (len(row) - 1)][1:] for i in range(slots)] + [row[-1][1:]] for row in things]
    )
    boxes = torch.cat([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], -1)
    cells = torch.stack(
        torch.meshgrid(*[(torch.arange(data.GRID) + 0.5) / data.GRID] * 2, indexing="xy"), -1
    ).view(-1, 2)
    nearest = torch.cdist(cells.expand(len(boxes), -1, -1), boxes[:, :-1, :2]).argmin(-1)
    nearest[tags[..., 3] > 0] = slots
    return boxes.gather(1, nearest[..., None].expand(-1, -1, 4))


def run(
    output: Path, *, folder: Path, steps: int, batch: int, device: str, seed: int = 16
) -> dict[str, float]:
    """Train on the scenes in `folder` and save to `output`; return the final numbers. Every image is asked
    for everything."""
    torch.manual_seed(seed)
    words = tokenizer.owl()
    images, tag_array, _ = data.load(folder)
    tags = torch.from_numpy(tag_array)
    boxes, tags = boxes_of_cells(data.load_lists(folder, "things"), tags).to(device), tags.to(device)
    known_phrases = phrases()
    texts = [phrase for phrase, *_ in known_phrases] + ["sign", "a sign"]
    ids = words(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids.to(device)
    numbers = torch.tensor([row[1:] for row in known_phrases], device=device)
    owl = model(words).to(device)  # type: ignore[arg-type]  # untyped in transformers
    owl.owlvit.vision_model.requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(seed)
    parts = []  # once: the tower does not change
    for part in torch.from_numpy(images).split(250):
        pixels = processed(normalise(augment(part.to(device), generator)), LOW)
        with torch.no_grad():
            parts.append(owl.owlvit.vision_model(pixel_values=pixels).last_hidden_state)
    seen = torch.cat(parts)
    owl.owlvit.vision_model.post_layernorm.requires_grad_(True)
    text_parts = (owl.owlvit.text_model, owl.owlvit.text_projection)
    learned = [
        owl.owlvit.vision_model.post_layernorm,
        owl.layer_norm,
        owl.class_head,
        owl.box_head,
        *text_parts,
    ]

    def loss(_: int) -> dict[str, Tensor]:
        index = torch.randint(len(seen), (batch,), generator=generator, device=device)
        cells = owl.owlvit.vision_model.post_layernorm(seen[index])
        cells = owl.layer_norm(cells[:, 1:] * cells[:, :1])  # as OwlViTForObjectDetection does
        read = owl.owlvit.text_model(
            input_ids=ids, attention_mask=(ids != words.pad_token_id).long()
        ).pooler_output
        queries = owl.owlvit.text_projection(read).expand(batch, -1, -1)
        logits, _ = owl.class_predictor(cells, queries)
        predicted = owl.box_predictor(cells, cells.unflatten(1, (data.GRID, data.GRID)))
        target = truth(tags[index], numbers).float()
        certain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        focal = (certain * (logits.sigmoid() - target).abs() ** 1.5).sum() / target.sum()
        place = (predicted - boxes[index]).abs().sum(-1)[target.amax(2) > 0].mean()
        best, present = logits.amax(1) > 0, target.amax(1) > 0
        return {
            "loss": focal + place,
            "place": place,
            "found": best[present].float().mean(),
            "invented": best[~present].float().mean(),
        }

    results = train("detector", [value for part in learned for value in part.parameters()], loss, steps, 2e-3)
    save_half(owl.eval(), output)
    processor = OwlViTImageProcessor(
        size={"height": LOW, "width": LOW}, image_mean=list(MEAN), image_std=list(STD)
    )
    OwlViTProcessor(processor, tokenizer.owl()).save_pretrained(
        output
    )  # a fresh tokenizer: padding to a length would be saved
    return results | {"parameters": owl.num_parameters()}
