"""A small language model to estimate: does training it fit an 8 GB Mac?

    mpskit estimate examples/estimate_model.py:make_model \
        --batch int64[8,256] int64[8,256] --machine m1-8gb --plot timeline.png
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Attention and a perceptron, each with its norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, width), the shape of ``x``."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """A decoder of ``depth`` blocks."""

    def __init__(
        self, vocabulary: int = 32_000, width: int = 768, depth: int = 12, heads: int = 12
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits of shape (batch, length, vocabulary)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.places(places))))


def make_model() -> nn.Module:
    """Return the model, as the estimate and a training script would make it."""
    return LanguageModel()


if __name__ == "__main__":
    from mpskit import TensorSpec, estimate_training_memory

    tokens = TensorSpec((8, 256), "int64")
    estimate = estimate_training_memory(make_model, (tokens, tokens), device="mps")
    print(estimate)
    print("m1-8gb:", estimate.fits("m1-8gb"))
