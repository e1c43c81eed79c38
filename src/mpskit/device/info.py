"""Result types of `get_optimal_device`: the choice, its reasons and the rejected devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mpskit._base.values import Value
from mpskit.device.codes import Basis, ReasonCode

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceChoice", "DeviceInfo", "Rejected"]


class Rejected(Value):
    """A candidate that was not chosen.

    Attributes:
        device: the candidate, such as ``"mps"``; for an overruled request, what it asked for.
        code: the cause, for programs.
        reason: the cause in one sentence.
        fix: a command that would change it; None if none would.
    """

    device: str
    code: ReasonCode
    reason: str
    fix: str | None = None

    def __str__(self) -> str:
        fix = f" (to change this: {self.fix})" if self.fix else ""
        return f"{self.device}: {self.reason}{fix}"


class DeviceInfo(Value):
    """Why a device was chosen.

    Attributes:
        device: the chosen device as torch writes it, such as ``"cuda:0"``.
        reason: one sentence.
        basis: what the choice rests on: measured, predicted, default or forced.
        rejected: every other candidate, and every overruled request.
        advice: what else is worth knowing, a sentence each.
        machine: the machine in a few words; no user or host name.
        torch_version: the version of the torch that was asked.
    """

    device: str
    reason: str
    basis: Basis
    rejected: tuple[Rejected, ...] = ()
    advice: tuple[str, ...] = ()
    machine: str = ""
    torch_version: str = ""

    def __str__(self) -> str:
        parts = [f"Using {self.device} on {self.machine} with torch {self.torch_version}: "]
        parts += [f"{self.reason}."]
        if self.rejected:
            parts += [" Not used: ", "; ".join(map(str, self.rejected)), "."]
        return "".join([*parts, *(f" {line}" for line in self.advice)])


class DeviceChoice(NamedTuple):
    """``device, info = get_optimal_device()``."""

    device: torch.device
    info: DeviceInfo
