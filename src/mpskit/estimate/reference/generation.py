"""A prompt and the tokens decoded after it, with the key-value cache that ``generate()`` keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from mpskit.errors import ArgumentError
from mpskit.estimate.reference.attention import Cache
from mpskit.estimate.reference.config import Shape, refuse

__all__ = ["check_cache", "generating", "left_out", "traced_lengths"]

# Steps of one token that are traced: all, or as many evenly spaced ones, from each to the next of
# which the cache grows at once. The live peak is that of the prompt or of the last step.
_MOST = 12


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
    lengths = traced_lengths(seq_len, cache_len)

    def call(model: torch.nn.Module, batch: Any) -> None:
        ids, cache = batch["input_ids"], Cache()
        for held, following in itertools.pairwise([*lengths, cache_len + 1]):
            cache.begin(held)
            scores = model(ids if held == seq_len else ids[:, -1:], cache=cache)["scores"]
            scores = scores[:, -1].to(torch.float32, copy=True)
            chosen = scores.argmax(-1)[:, None].expand(-1, following - held)
            ids = torch.cat((ids, chosen), dim=-1)

    return call


def traced_lengths(seq_len: int, cache_len: int) -> list[int]:
    """Return the tokens in the cache after each traced pass; the last is a step of one token."""
    steps = cache_len - seq_len
    if steps <= _MOST:
        return list(range(seq_len, cache_len + 1))
    most = _MOST - 1
    return [*(seq_len + (steps - 1) * n // most for n in range(most + 1)), cache_len]


def left_out(seq_len: int, cache_len: int) -> tuple[str, ...]:
    """Return the note on steps that are not traced, if there are any."""
    steps = cache_len - seq_len
    if steps <= _MOST:
        return ()
    note = (
        f"{_MOST} of {steps} decoding steps are traced: MPS up to torch 2.13 keeps freed buffers "
        "of every length of the cache, so driver memory is at least this until it is emptied"
    )
    return (note,)
