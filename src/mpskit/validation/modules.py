"""A module that several checks of a validation need."""

from __future__ import annotations

import torch

__all__ = ["FirstResult"]


class FirstResult(torch.nn.Module):
    """The first result of a layer that returns several, such as a recurrent one's outputs."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's first result."""
        result: torch.Tensor = self.layer(x)[0]
        return result
