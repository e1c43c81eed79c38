"""The models behind the published step times of ``data/step_times.csv``.

Each function returns a module with the shapes and the operators of the model that was timed, for
its counts; the weights are random and nothing is trained. Transformers come from their configs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def conv_norm(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution with its batch norm."""
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer))


class Residual(nn.Module):
    """Convolutions, and the way around them."""

    def __init__(self, layers: list[nn.Module], around: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.around = around

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both ways."""
        same = x if self.around is None else self.around(x)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number < len(self.layers) - 1:
                x = functional.relu(x, inplace=True)
        return functional.relu(x + same, inplace=True)


class Head(nn.Module):
    """Means over the image, and a linear layer."""

    def __init__(self, inner: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        return self.linear(x.mean((2, 3)))


def resnet(blocks: tuple[int, ...], *, wide: bool, classes: int = 10) -> nn.Module:
    """Return ResNet-18 (2, 2, 2, 2) or, ``wide``, ResNet-50 (3, 4, 6, 3)."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inner = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        outer = width * (4 if wide else 1)
        for number in range(count):
            stride = 2 if number == 0 and stage else 1
            if wide:
                parts = [
                    conv_norm(inner, width, 1),
                    conv_norm(width, width, 3, stride),
                    conv_norm(width, outer, 1),
                ]
            else:
                parts = [conv_norm(inner, width, 3, stride), conv_norm(width, width, 3)]
            around = conv_norm(inner, outer, 1, stride) if stride > 1 or inner != outer else None
            layers.append(Residual(parts, around))
            inner = outer
    return nn.Sequential(*layers, Head(inner, classes))


def resnet18_cifar(classes: int = 10) -> nn.Module:
    """Return ResNet-18 as it is usual on CIFAR: a 3x3 stem that keeps the 32x32 pixels."""
    model = resnet((2, 2, 2, 2), wide=False, classes=classes)
    return nn.Sequential(conv_norm(3, 64, 3), nn.ReLU(inplace=True), *list(model)[3:])


def regnet_x_800mf(classes: int = 10) -> nn.Module:
    """Return RegNetX-800MF: groups of 16 channels, widths 64 to 672."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2), nn.ReLU(inplace=True)]
    inner = 32
    for width, count in zip((64, 128, 288, 672), (1, 3, 7, 5), strict=True):
        for number in range(count):
            stride = 2 if number == 0 else 1
            parts = [
                conv_norm(inner, width, 1),
                conv_norm(width, width, 3, stride, width // 16),
                conv_norm(width, width, 1),
            ]
            around = conv_norm(inner, width, 1, stride) if number == 0 else None
            layers.append(Residual(parts, around))
            inner = width
    return nn.Sequential(*layers, Head(inner, classes))


_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def _vgg_layers(*, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inner = 3
    for width in _VGG16:
        if not width:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=not norm))
            continue
        layers.append(conv_norm(inner, width, 3) if norm else nn.Conv2d(inner, width, 3, 1, 1))
        layers.append(nn.ReLU(inplace=True))
        inner = width
    return layers


def vgg16_bn(classes: int = 10) -> nn.Module:
    """Return VGG-16 with batch norm, for 224x224 pixels."""
    linear = [nn.Linear(25088, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    linear += [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*_vgg_layers(norm=True), nn.Flatten(), *linear, nn.Linear(4096, classes))


def s3fd() -> nn.Module:
    """Return the layers of the face detector S3FD without its small heads."""
    more = [(512, 1024, 3, 1), (1024, 1024, 1, 1), (1024, 256, 1, 1), (256, 512, 3, 2)]
    more += [(512, 128, 1, 1), (128, 256, 3, 2)]
    layers = _vgg_layers(norm=False)
    for inner, outer, kernel, stride in more:
        layers += [nn.Conv2d(inner, outer, kernel, stride, kernel // 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Self-attention by ``scaled_dot_product_attention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what each token takes from the others."""
        rows, tokens, width = x.shape
        parts = self.inner(x).view(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.outer(mixed.transpose(1, 2).reshape(rows, tokens, width))


class Encoder(nn.Module):
    """A layer of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens after attention and the perceptron."""
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Vit(nn.Module):
    """A vision transformer without its classifier."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, pixels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(torch.zeros(1, (pixels // patch) ** 2, width))
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the last layer."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.norm(self.layers(tokens))


# name -> makes the model; the image's pixels stand in the row.
VISION: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet((2, 2, 2, 2), wide=False),
    "resnet18_cifar": resnet18_cifar,
    "resnet50": lambda: resnet((3, 4, 6, 3), wide=True, classes=1000),
    "regnet_x_800mf": regnet_x_800mf,
    "vgg16_bn": vgg16_bn,
    "s3fd": s3fd,
    "clip_vit_b32": lambda: Vit(768, 12, 12, 32, 224),
    "vit_g14": lambda: Vit(1536, 40, 24, 14, 224),
}

_BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 28996,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
# name -> config, as published or as the source describes the model.
CONFIGS: dict[str, dict[str, Any]] = {
    "bert-base-cased": {
        **_BERT,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "bert-large": {
        **_BERT,
        "vocab_size": 30522,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "minimind-512x8": {
        **_LLAMA,
        "vocab_size": 6400,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "orkhon-tiny-24m": {
        **_LLAMA,
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    },
    "qwen2-7b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "max_position_embeddings": 32768,
    },
    "d128-4l": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 256,
        "n_positions": 128,
        "n_ctx": 128,
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "activation_function": "gelu_new",
    },
}
