"""How images reach the towers, on the device: the paths of MGM and of the processors, from stored 128 x 128
pixels."""

import torch
import torch.nn.functional as F

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 or 0..255 float [n, h, w, 3] -> normalised float [n, 3, h, w]."""
    values = pixels.permute(0, 3, 1, 2).float() / 255
    return (values - values.new_tensor(MEAN)[:, None, None]) / values.new_tensor(STD)[:, None, None]


def low_resolution(high: torch.Tensor, size: int) -> torch.Tensor:
    """MGM's low-resolution image: bilinear, no antialias, of the normalised high-resolution one."""
    return F.interpolate(high, size=(size, size), mode="bilinear", align_corners=False)


def processed(high: torch.Tensor, size: int) -> torch.Tensor:
    """What an HF image processor makes: bicubic with antialias, rounded to whole levels (here within one
    level)."""
    return F.interpolate(high, size=(size, size), mode="bicubic", align_corners=False, antialias=True)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 [n, h, w, 3] -> float, each image with its own light, contrast and noise."""
    values = pixels.float()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=pixels.device)

    light, contrast = 6 * draw(len(values), 1, 1, 1), 1 + 0.05 * draw(len(values), 1, 1, 1)
    noisy = (values - 128) * contrast + 128 + light + 2 * draw(*values.shape)
    return noisy.clamp(0, 255)
