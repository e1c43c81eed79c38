"""The CUDA cards to compare a Mac with, by their makers' figures."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from mpskit._base.data import read_csv
from mpskit._base.values import Value

__all__ = ["CudaCard", "cuda_card", "cuda_cards"]

_OTHER_CARDS = {"ti", "super", "laptop", "mobile", "max"}


class CudaCard(Value):
    """A CUDA card, by its maker's figures.

    Attributes:
        name: as people write it: ``RTX 3090``, ``A100 80GB``.
        memory_gb: what is printed on the box.
        memory_bandwidth_gbs: in 10^9 bytes a second.
        fp32_tflops: peak outside the tensor cores, 10^12 operations a second.
        sources: where the figures stand.
    """

    name: str
    memory_gb: int
    memory_bandwidth_gbs: float
    fp32_tflops: float
    sources: str


@functools.cache
def cuda_cards() -> Mapping[str, CudaCard]:
    """Return the cards by name, lower case."""
    cards = [CudaCard.model_validate(cells) for cells in read_csv("cuda_cards.csv")]
    return {card.name.lower(): card for card in cards}


def cuda_card(name: str) -> CudaCard | None:
    """Return the card whose name stands in ``name`` (``NVIDIA GeForce RTX 3090``), if one does."""
    words = set(re.sub(r"[^a-z0-9]+", " ", name.lower()).split())
    if words & _OTHER_CARDS:
        return None
    named = [card for key, card in cuda_cards().items() if set(key.split()) <= words]
    return max(named, key=lambda card: len(card.name), default=None)
