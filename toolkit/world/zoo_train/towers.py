"""The tiny CLIP and the tiny ConvNeXt, trained together against one text tower.

Three losses: matching images and captions (both towers), and naming the colour, kind, count and word that
each of the 4 x 4 cells shows, from the very features that MGM takes: CLIP's hidden_states[-2] and the four
ConvNeXt stages at stage-0 resolution.
"""

import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from toolkit.world.zoo_train import data, tokenizer
from toolkit.world.zoo_train.images import MEAN, STD, augment, low_resolution, normalise, processed
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half

LOW, HIGH, PATCH, JOINT = 84, 128, 21, 64  # pixels, pixels, pixels, width of the joint space
DIMS, DEPTHS = (16, 32, 64, 128), (1, 1, 2, 1)


def clip_model(words: tokenizer.PreTrainedTokenizerFast) -> CLIPModel:
    """CLIP with 0.7 million parameters: 16 patches of 21 pixels, 3 layers of width 96; text: 2 layers."""
    text = {
        "vocab_size": -(-len(words) // 64) * 64,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "projection_dim": JOINT,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": LOW,
        "patch_size": PATCH,
        "projection_dim": JOINT,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT))


class Block(nn.Module):
    """A ConvNeXt block, parameters named as in timm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.mlp["fc2"](F.gelu(self.mlp["fc1"](y)))
        return x + y.permute(0, 3, 1, 2)


class Norm2d(nn.LayerNorm):
    """Layer norm over the channels of [n, c, h, w]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Trunk(nn.Module):
    """timm's ConvNeXt without its head: `stem.{0,1}`, `stages.{i}.downsample.{0,1}`,
    `stages.{i}.blocks.{j}`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, DIMS[0], 4, 4), Norm2d(DIMS[0], eps=1e-6))
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(DIMS, DEPTHS, strict=True)):
            stage = nn.ModuleDict({"blocks": nn.Sequential(*(Block(width) for _ in range(depth)))})
            if i:
                stage["downsample"] = nn.Sequential(
                    Norm2d(DIMS[i - 1], eps=1e-6), nn.Conv2d(DIMS[i - 1], width, 2, 2)
                )
            self.stages.append(stage)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of the four stages."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleDict)
            x = stage["blocks"](stage["downsample"](x) if "downsample" in stage else x)
            maps.append(x)
        return maps


class Heads(nn.Module):
    """Linear names for every cell, from features [n, 16, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in data.SIZES)

    def forward(self, features: torch.Tensor, tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and the share of sign cells whose word is right."""
        loss = features.new_zeros(())
        for i, head in enumerate(self.heads):
            target = tags[..., i].long().flatten()
            logits = head(features).flatten(0, 1).float()
            weight = torch.full((data.SIZES[i],), 1.0, device=logits.device)
            weight[0] = 0.2  # most cells show nothing
            loss = loss + F.cross_entropy(logits, target, weight)
        return loss, (logits.argmax(-1) == target)[target > 0].float().mean()


def matching(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, same_text: torch.Tensor
) -> torch.Tensor:
    """Symmetric contrastive loss; pairs with equal captions (`same_text`) are not negatives."""
    logits = (
        scale.clamp(max=4.0).exp() * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    ).masked_fill(same_text, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def windows(maps: list[torch.Tensor]) -> torch.Tensor:
    """Means of the 16 windows of 8 x 8 candidates, the stages brought to stage-0 resolution and joined as MGM
    does: [n, 16, 240]."""
    joined = torch.cat(
        [maps[0], *(F.interpolate(x.float(), size=maps[0].shape[2:], mode="bilinear") for x in maps[1:])], 1
    )
    return F.adaptive_avg_pool2d(joined, 4).flatten(2).transpose(1, 2)


def run(
    output: Path, *, folder: Path, steps: int, batch: int, device: str, seed: int = 12
) -> dict[str, float]:
    """Train on the scenes in `folder`, save `output`/clip and `output`/convnext; return the final numbers."""
    torch.manual_seed(seed)
    words = tokenizer.clip()
    image_array, tag_array, texts = data.load(folder)
    styles = len(texts[0])
    encoded = words(
        [text for row in texts for text in row],
        padding="max_length",
        max_length=32,
        truncation=True,
        return_tensors="pt",
    )
    ids = encoded.input_ids.reshape(len(texts), styles, 32).to(device)
    images, tags = torch.from_numpy(image_array).to(device), torch.from_numpy(tag_array).to(device)
    clip = clip_model(words).to(device)  # type: ignore[arg-type]  # untyped in transformers
    trunk = Trunk().to(device)
    extras = nn.ModuleDict(
        {
            "clip": Heads(96),
            "deep": Heads(96),
            "convnext": Heads(sum(DIMS)),
            "norm": nn.LayerNorm(sum(DIMS)),
            "pool": nn.Linear(128, JOINT),
        }
    )
    extras.to(device)
    scale = nn.Parameter(torch.tensor(2.0, device=device))
    clip.logit_scale.requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(seed)

    def loss(_: int) -> dict[str, torch.Tensor]:
        index = torch.randint(len(images), (batch,), generator=generator, device=device)
        style = torch.randint(styles, (batch,), generator=generator, device=device)
        text_ids = ids[index, style]
        same_text = (text_ids[:, None] == text_ids[None]).all(-1) & ~torch.eye(
            batch, dtype=torch.bool, device=device
        )
        high = normalise(augment(images[index], generator))
        low = low_resolution(high, LOW)
        half = batch // 3  # a third of the images as the processor makes them
        low[:half] = processed(high[:half], LOW)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            text = clip.text_projection(
                clip.text_model(
                    input_ids=text_ids, attention_mask=(text_ids != words.pad_token_id).long()
                ).pooler_output
            )
            vision = clip.vision_model(pixel_values=low, output_hidden_states=True)
            maps = trunk(high)
            patches = vision.hidden_states[-2][:, 1:]
            clip_tag, clip_word = extras["clip"](patches, tags[index])
            deep_tag, _ = extras["deep"](vision.hidden_states[-1][:, 1:], tags[index])
            convnext_tag, convnext_word = extras["convnext"](extras["norm"](windows(maps)), tags[index])
            match = matching(clip.visual_projection(vision.pooler_output), text, scale, same_text)
            high_match = matching(extras["pool"](maps[-1].mean((2, 3))), text, scale, same_text)
        total = (
            match
            + high_match
            + clip_tag
            + 0.5 * deep_tag
            + convnext_tag
            + 0.01 * patches.float().pow(2).mean()
        )
        return {
            "loss": total,
            "match": match,
            "high_match": high_match,
            "clip_word": clip_word,
            "convnext_word": convnext_word,
        }

    parameters = itertools.chain.from_iterable(module.parameters() for module in (clip, trunk, extras))
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    numbers = train("towers", [*learned, scale], loss, steps, 1.5e-3)
    clip.eval()
    clip.logit_scale.data.fill_(4.6052)  # 100, as in the published CLIP: logits / 100 are cosines
    save_half(clip, output / "clip")
    processor = CLIPImageProcessor(
        size={"shortest_edge": LOW},
        crop_size={"height": LOW, "width": LOW},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    CLIPProcessor(processor, tokenizer.clip()).save_pretrained(output / "clip")
    (output / "convnext").mkdir(parents=True, exist_ok=True)
    tensors = {
        f"visual.trunk.{key}": value.detach().half().contiguous().cpu()
        for key, value in trunk.state_dict().items()
    }
    save_file(tensors, output / "convnext/open_clip_model.safetensors")
    vision = {
        "timm_model_name": "convnext",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "mlp",
        "timm_model_args": {"dims": list(DIMS), "depths": list(DEPTHS)},
        "image_size": HIGH,
    }
    config = {
        "model_cfg": {"embed_dim": JOINT, "vision_cfg": vision},
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD)},
    }
    (output / "convnext/open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return numbers | {
        "clip_parameters": clip.num_parameters(),
        "convnext_parameters": sum(value.numel() for value in trunk.parameters()),
    }
