"""Three tiny models that look at the image alone: a watermark, a planted pattern, sharpness.

`watermark` knows one kind of watermark, a grey word across the image. `pattern` stands where a detector of
unsafe images stands in a real recipe: what it finds is a chequered board pasted onto a scene, nothing else.
`sharpness` stands for aesthetics: it scores from 2 for a blurred scene to 7 for a sharp one, in the class of
the LAION predictor. None of these says anything about real photographs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from toolkit.aesthetics import AestheticsPredictor
from toolkit.world.scene import SIDE
from toolkit.world.zoo_train import data
from toolkit.world.zoo_train.images import MEAN, STD, augment, normalise, processed
from toolkit.world.zoo_train.loop import train
from toolkit.world.zoo_train.save import save_half

SIZE, PATCH = 96, 12  # pixels
SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
}
MARKS = ("sample", "preview", "copyright", "stock", "draft")
MOST_BLUR = 9.0  # pixels, the standard deviation that the seed set's blurred images have


def masks() -> np.ndarray:
    """float32 [10, 128, 128]: each word of MARKS across the image, rising and falling."""
    pictures = []
    for word in MARKS:
        image = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(image).text(
            (SIDE / 2, SIDE / 2), word, font=ImageFont.load_default(26), fill=255, anchor="mm"
        )
        pictures += [np.asarray(image.rotate(angle, Image.Resampling.BILINEAR)) for angle in (30, -30)]
    return np.stack(pictures).astype(np.float32) / 255


def watermarked(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """float [n, 128, 128, 3], each with a grey word of MARKS somewhere."""
    shapes = torch.from_numpy(masks()).to(pixels.device)
    marked = []
    for image in pixels:
        shape_share, dy, dx, strength = torch.rand(4, generator=generator, device=pixels.device).tolist()
        shape = shapes[int(shape_share * len(shapes))]
        moved = shape.roll((int(60 * dy) - 30, int(40 * dx) - 20), (0, 1))
        mask = moved[..., None] * (0.35 + 0.4 * strength)
        marked.append(image * (1 - mask) + 120 * mask)  # seen on pale grounds and on dark things
    return torch.stack(marked)


def chequered(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """float [n, 128, 128, 3], each with a board of magenta and black squares over a sixth to a quarter of its
    area."""
    result = pixels.clone()
    for image in result:
        side, y, x = torch.rand(3, generator=generator, device=pixels.device).tolist()
        side = int(52 + 12 * side)
        squares = torch.arange(side, device=pixels.device) // 8
        board = ((squares[:, None] + squares) % 2)[..., None] * torch.tensor(
            [230.0, 30.0, 200.0], device=pixels.device
        )
        y, x = int(y * (SIDE - side)), int(x * (SIDE - side))
        image[y : y + side, x : x + side] = board
    return result


def blurred(pixels: Tensor, deviation: Tensor) -> Tensor:
    """float [n, 128, 128, 3], image i blurred by a Gaussian of `deviation[i]` pixels."""
    offsets = torch.arange(-24, 25, device=pixels.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation.clamp(min=0.05)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    planes = pixels.permute(0, 3, 1, 2).reshape(1, -1, SIDE, SIDE)
    for shape, padding in (((-1, 1, 49, 1), (0, 0, 24, 24)), ((-1, 1, 1, 49), (24, 24, 0, 0))):
        planes = F.conv2d(F.pad(planes, padding, mode="replicate"), kernel.view(shape), groups=len(kernel))
    return planes.view(len(pixels), 3, SIDE, SIDE).permute(0, 2, 3, 1)


def run(
    name: str, output: Path, *, folder: Path, steps: int, batch: int, device: str, seed: int = 15
) -> dict[str, float]:
    """Train "watermark", "pattern" or "sharpness" on the scenes in `folder` and save to `output`; return the
    final numbers."""
    torch.manual_seed(seed)
    images = torch.from_numpy(data.load_images(folder)).to(device)
    if name == "sharpness":
        model: PreTrainedModel = AestheticsPredictor(CLIPVisionConfig(**SHAPE, projection_dim=32))
    else:
        labels = {"watermark": ("clean", "watermark"), "pattern": ("normal", "pattern")}[name]
        model = ViTForImageClassification(
            ViTConfig(**SHAPE, id2label=dict(enumerate(labels)), label2id={labels[0]: 0, labels[1]: 1})
        )
    model.to(device)  # type: ignore[arg-type]  # untyped in transformers
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(count: int) -> Tensor:
        return augment(
            images[torch.randint(len(images), (count,), generator=generator, device=device)], generator
        )

    def loss(_: int) -> dict[str, Tensor]:
        half = batch // 2
        if name == "sharpness":
            share = torch.rand(batch, generator=generator, device=device)
            share[:half] = 0  # half of the images are sharp
            inputs = processed(normalise(blurred(draw(batch), MOST_BLUR * share)), SIZE)
            predicted, target = model(pixel_values=inputs).logits[:, 0], 7 - 5 * share
            return {"loss": F.mse_loss(predicted, target), "error": (predicted - target).abs().mean()}
        plant, pixels = watermarked if name == "watermark" else chequered, draw(half)
        target = torch.arange(2 * half, device=device).lt(half).long()
        # the same images with and without
        inputs = processed(normalise(torch.cat([plant(pixels, generator), pixels])), SIZE)
        logits = model(pixel_values=inputs).logits
        return {"loss": F.cross_entropy(logits, target), "right": (logits.argmax(1) == target).float().mean()}

    numbers = train(name, model.parameters(), loss, steps, 1e-3)
    save_half(model.eval(), output)
    size = {"height": SIZE, "width": SIZE}
    colours: dict[str, Any] = {"image_mean": list(MEAN), "image_std": list(STD)}
    if name == "sharpness":
        CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size, **colours).save_pretrained(output)
    else:
        ViTImageProcessor(size=size, resample=Image.Resampling.BICUBIC, **colours).save_pretrained(output)
    return numbers | {"parameters": model.num_parameters()}
