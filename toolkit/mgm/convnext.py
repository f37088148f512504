"""The high-resolution tower: the stem and four stages of a ConvNeXt (arXiv 2201.03545), without norm, pooling
and head.

Parameter names are those of the official checkpoint (`vision_stem.*`, `vision_stages.*`), which are timm's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    from toolkit.mgm.depthwise import depthwise
except ImportError:  # Triton comes with the CUDA builds of PyTorch only
    depthwise = None  # type: ignore[assignment]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them, channels last."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, MLP, layer scale, residual. Drop-path is left out: the tower is frozen and
    always evaluates."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        fast = (
            depthwise is not None
            and x.is_cuda
            and not torch.is_grad_enabled()
            and self.conv_dw.weight.dtype == x.dtype
        )
        y = depthwise(x, self.conv_dw.weight, self.conv_dw.bias) if fast else self.conv_dw(x)
        y = self.mlp(self.norm(y.permute(0, 2, 3, 1)))
        return x + (y * self.gamma).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Optional 2x2 downsampling, then blocks."""

    def __init__(self, previous: int | None, dim: int, depth: int) -> None:
        super().__init__()
        self.downsample = (
            nn.Identity()
            if previous is None
            else nn.Sequential(LayerNorm2d(previous, eps=1e-6), nn.Conv2d(previous, dim, 2, stride=2))
        )
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNextTower(nn.Module):
    """[B, 3, S, S] -> four maps [B, dims[i], S / (4 * 2**i), S / (4 * 2**i)]."""

    def __init__(self, depths: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__()
        self.vision_stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), LayerNorm2d(dims[0], eps=1e-6))
        previous = (None, *dims[:-1])
        self.vision_stages = nn.ModuleList(
            Stage(p, dim, depth) for p, dim, depth in zip(previous, dims, depths, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.vision_stem(images)
        maps = []
        for stage in self.vision_stages:
            x = stage(x)
            maps.append(x)
        return maps


def resize(features: Tensor, **to: Any) -> Tensor:
    """[B, C, h, w] by bilinear interpolation in float32, corners not aligned, to a `size` or by a
    `scale_factor`."""
    return F.interpolate(features.float(), **to, mode="bilinear", align_corners=False).to(features.dtype)


def concatenate(maps: list[Tensor]) -> Tensor:
    """Resize every map to the first one's side and stack channels: [B, sum(dims), s, s]."""
    first = maps[0]
    return torch.cat([first, *(resize(m, size=first.shape[-2:]) for m in maps[1:])], dim=1)
