"""Convolutional networks and vision transformers, written out here: no other package is needed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from estimate_cases.case import Case, labelled, spec

__all__ = ["CASES", "Attention", "mobilenet_v2", "resnet18", "resnet50"]


class Residual(nn.Module):
    """A residual block of ResNet: ``body(x) + shortcut(x)``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def conv_bn(
    inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


def shortcut(inside: int, out: int, stride: int) -> nn.Module:
    if inside == out and stride == 1:
        return nn.Identity()
    return nn.Sequential(*conv_bn(inside, out, 1, stride))


def basic(inside: int, width: int, stride: int) -> nn.Module:
    body = [*conv_bn(inside, width, 3, stride), nn.ReLU(inplace=True), *conv_bn(width, width, 3)]
    return Residual(nn.Sequential(*body), shortcut(inside, width, stride))


def bottleneck(inside: int, width: int, stride: int) -> nn.Module:
    body = [*conv_bn(inside, width, 1), nn.ReLU(inplace=True)]
    body += [*conv_bn(width, width, 3, stride), nn.ReLU(inplace=True)]
    body += conv_bn(width, 4 * width, 1)
    return Residual(nn.Sequential(*body), shortcut(inside, 4 * width, stride))


def resnet(block, expansion: int, depths: tuple[int, ...]) -> nn.Module:
    layers = [*conv_bn(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for index in range(depth):
            layers.append(block(inside, width, 2 if stage and not index else 1))
            inside = width * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1000))


def resnet18() -> nn.Module:
    return resnet(basic, 1, (2, 2, 2, 2))


def resnet50() -> nn.Module:
    return resnet(bottleneck, 4, (3, 4, 6, 3))


class Inverted(nn.Module):
    def __init__(self, inside: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inside * expand
        layers = [] if expand == 1 else [*conv_bn(inside, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(*layers, *conv_bn(hidden, out, 1))
        self.keep = stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keep else self.body(x)


def mobilenet_v2() -> nn.Module:
    rows = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
    ]
    layers = [*conv_bn(3, 32, 3, 2), nn.ReLU6(inplace=True)]
    inside = 32
    for expand, out, count, stride in [*rows, (6, 320, 1, 1)]:
        for index in range(count):
            layers.append(Inverted(inside, out, 1 if index else stride, expand))
            inside = out
    layers += [*conv_bn(320, 1280, 1), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (224 // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*[Encoder(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(functional.gelu(self.up(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    widths, depths = (96, 192, 384, 768), (3, 3, 9, 3)
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4), nn.GroupNorm(1, 96)]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            before = widths[stage - 1]
            layers += [nn.GroupNorm(1, before), nn.Conv2d(before, width, 2, 2)]
        layers += [ConvNextBlock(width) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 1000))


def double(inside: int, out: int) -> nn.Module:
    layers = [*conv_bn(inside, out, 3), nn.ReLU(inplace=True), *conv_bn(out, out, 3)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class UNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths), widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for index, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if index else x)
            kept.append(x)
        for rise, up, skip in zip(self.rise, self.up, kept[-2::-1], strict=True):
            x = up(torch.cat([skip, rise(x)], dim=1))
        return self.head(x)


sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
adamw = torch.optim.AdamW
MASKS = (spec(4, 3, 128, 128), spec(4, 128, 128, dtype="int64"))

CASES = [
    Case("resnet18-sgd", "conv", resnet18, labelled(16, 3, 224, 224), sgd),
    Case(
        "resnet18-foreach", "conv", resnet18, labelled(8, 3, 224, 224), partial(adamw, foreach=True)
    ),
    Case(
        "resnet18-inference",
        "conv",
        lambda: resnet18().eval(),
        spec(16, 3, 224, 224),
        None,
        inference=True,
    ),
    Case(
        "resnet50-bf16-mixed",
        "conv",
        resnet50,
        labelled(8, 3, 224, 224),
        adamw,
        precision="bf16-mixed",
    ),
    Case("resnet50-sgd", "conv", resnet50, labelled(8, 3, 224, 224), sgd),
    Case("mobilenetv2-sgd", "conv", mobilenet_v2, labelled(16, 3, 224, 224), sgd),
    Case("vit-base", "transformer", ViT, labelled(4, 3, 224, 224), adamw),
    Case(
        "vit-small-fused",
        "transformer",
        partial(ViT, 384, 12, 6),
        labelled(16, 3, 224, 224),
        partial(adamw, fused=True),
    ),
    Case("convnext-tiny", "conv", convnext, labelled(8, 3, 224, 224), adamw),
    Case("unet-adam", "conv", UNet, MASKS, torch.optim.Adam),
]
