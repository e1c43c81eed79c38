"""A prompt and the tokens decoded after it, with the key-value cache that ``generate()`` keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from mpskit.errors import ArgumentError
from mpskit.estimate.reference.attention import Cache
from mpskit.estimate.reference.config import Shape, refuse

__all__ = ["check_cache", "generating"]

# Steps of one token between prompt and last token that are traced. The cache's tensors grow from
# each to the next at once: what an allocator keeps of the lengths in between shows at a few.
_STEPS = 8


def check_cache(shape: Shape, *, seq_len: int, cache_len: int) -> None:
    """Raise unless a model of that shape can decode to so many tokens.

    Raises:
        ArgumentError: it is no decoder, the cache is shorter than the prompt, or a sliding window
            is shorter than the cache.
    """
    if cache_len < seq_len:
        raise ArgumentError(
            f"cache_len: {cache_len} tokens are fewer than the prompt's {seq_len} (seq_len)",
            given=cache_len,
        )
    if shape.columns["stacks"] != "decoder":
        refuse("a cache is that of a decoder alone", cache_len)
    if shape.masked and not shape.columns["masked"]:
        refuse(f"a sliding window is shorter than {cache_len} tokens", cache_len)


def generating(seq_len: int, cache_len: int) -> Callable[[torch.nn.Module, Any], None]:
    """Return the call that runs a prompt and decodes until the cache holds ``cache_len`` tokens."""
    steps = range(1, _STEPS + 1)
    between = {seq_len + (cache_len - 1 - seq_len) * step // _STEPS for step in steps}
    lengths = sorted({seq_len, cache_len} | {n for n in between if n > seq_len})

    def call(model: torch.nn.Module, batch: Any) -> None:
        ids, cache = batch["input_ids"], Cache()
        for held, following in itertools.pairwise([*lengths, lengths[-1] + 1]):
            cache.begin(held)
            scores = model(ids if held == seq_len else ids[:, -1:], cache=cache)["scores"]
            scores = scores[:, -1].to(torch.float32, copy=True)
            chosen = scores.argmax(-1)[:, None].expand(-1, following - held)
            ids = torch.cat((ids, chosen), dim=-1)

    return call
