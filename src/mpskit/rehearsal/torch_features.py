"""What of torch does nothing or something else on a Mac, and raises nothing: autocast, compile.

Torch says these by a warning at most, once in a process.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.amp import autocast_mode

from mpskit.backends.kinds import ACCELERATORS
from mpskit.dispatch.patches import Patches
from mpskit.errors import SimulationWarning
from mpskit.rehearsal.findings import Findings, Kind, Spot, spot_of

__all__ = ["Features", "install"]

_ELSEWHERE = frozenset(ACCELERATORS) - {"mps"}


class Features:
    """Watches autocast, gradient scalers and torch.compile.

    Args:
        findings: are told.

    Attributes:
        compiled: something was compiled.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._scaled = False
        self._half: Spot | None = None  # where float16 was asked for first
        self.compiled = False

    def end(self, steps: int) -> None:
        """Tell what is known only after the steps: that no loss was scaled."""
        if steps and self._half and not self._scaled:
            text = "float16 autocast without a gradient scaler: small gradients become zero"
            fix = 'torch.amp.GradScaler("mps"), or dtype=torch.bfloat16'
            self._findings.add(
                Kind.AUTOCAST, "autocast", text, fix, severity="wrong", spot=self._half, rated=False
            )

    def autocast(self, call: Callable[..., None]) -> Callable[..., None]:
        """Return ``autocast.__init__`` that tells where it is switched off."""

        @functools.wraps(call)
        def init(own: Any, device_type: Any, *args: Any, **kwargs: Any) -> None:
            call(own, device_type, *args, **kwargs)
            asked = kwargs.get("enabled", args[1] if len(args) > 1 else True)
            if asked:
                self._told(own)

        return init

    def _told(self, own: Any) -> None:
        spot = spot_of(sys._getframe(2))
        kind, dtype = own.device, own.fast_dtype
        if kind in _ELSEWHERE:
            text = f"autocast for {kind} does nothing on a Mac: the block runs in float32"
            fix = 'torch.autocast("mps", dtype=torch.bfloat16)'
            self._findings.add(Kind.AUTOCAST, "autocast", text, fix, spot=spot)
        elif kind == "mps" and not own._enabled:
            text = f"autocast for MPS does not take {dtype} here: the block runs in float32"
            fix = "torch.float16, or torch.bfloat16 from macOS 14"
            self._findings.add(Kind.AUTOCAST, "autocast", text, fix, spot=spot)
        elif kind == "mps" and dtype is torch.float16 and torch.is_grad_enabled():
            self._half = self._half or spot

    def scale(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``GradScaler.scale`` that tells where it is switched off."""

        @functools.wraps(call)
        def scale(own: Any, outputs: Any) -> Any:
            self._scaled = True
            if not own._enabled and own._device in _ELSEWHERE and self._half:
                text = f"a gradient scaler for {own._device} does nothing on a Mac"
                spot = spot_of(sys._getframe(1))
                fix = 'torch.amp.GradScaler("mps")'
                self._findings.add(
                    Kind.AUTOCAST, "GradScaler", text, fix, severity="wrong", spot=spot
                )
            return call(own, outputs)

        return scale

    def compile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``torch.compile`` that says that nothing is compiled here."""

        @functools.wraps(call)
        def compile(*args: Any, **kwargs: Any) -> Any:  # noqa: A001 - torch's name
            self.compiled = True
            text = (
                "torch.compile is rehearsed eagerly: on a Mac, Inductor generates Metal code, "
                "which torch calls an early prototype, and memory and launches differ"
            )
            fix = "compare with an uncompiled run on the Mac first"
            self._findings.add(Kind.COMPILE, "compile", text, fix, spot=spot_of(sys._getframe(1)))
            with warnings.catch_warnings():  # the simulated Mac would say the same
                warnings.simplefilter("ignore", SimulationWarning)
                return call(*args, **kwargs)

        return compile


def install(patches: Patches, findings: Findings) -> Features:
    """Watch until ``patches`` are undone."""
    features = Features(findings)
    patches.derive(autocast_mode.autocast, "__init__", features.autocast)
    patches.derive(torch.amp.GradScaler, "scale", features.scale)
    patches.derive(torch, "compile", features.compile)
    return features
