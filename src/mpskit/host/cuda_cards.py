"""The CUDA cards to compare a Mac with: their makers' figures, and the memory that torch sees."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from pydantic import field_validator

from mpskit._base.data import read_csv
from mpskit._base.sizes import GIB
from mpskit._base.values import Value

__all__ = ["CudaCard", "cuda_card", "cuda_cards"]

_OTHER_CARDS = {"ti", "super", "laptop", "mobile", "max"}


class CudaCard(Value):
    """A CUDA card, by its maker's figures.

    Attributes:
        name: as people write it: ``RTX 3090``, ``A100 80GB``.
        memory_gb: what is printed on the box.
        torch_memory_gib: the device's total memory as torch or CUDA reports it, by public reports;
            None where there is none.
        compute_capability: as NVIDIA's list of CUDA GPUs has it (developer.nvidia.com/cuda-gpus).
        memory_bandwidth_gbs: in 10^9 bytes a second.
        fp32_tflops: peak outside the tensor cores, 10^12 operations a second.
        sources: where the figures stand.
    """

    name: str
    memory_gb: int
    torch_memory_gib: float | None
    compute_capability: float
    memory_bandwidth_gbs: float
    fp32_tflops: float
    sources: str

    @field_validator("torch_memory_gib", mode="before")
    @classmethod
    def _unknown(cls, cell: str) -> str | None:
        return cell or None

    @property
    def memory_bytes(self) -> int:
        """The total memory as torch sees it; 10^9 bytes a GB, no card has less, where unknown."""
        known = self.torch_memory_gib
        return self.memory_gb * 10**9 if known is None else int(known * GIB)

    @property
    def computes_bfloat16(self) -> bool:
        """Whether its arithmetic has bfloat16: Ampere (compute capability 8.0) and later."""
        return self.compute_capability >= 8


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
