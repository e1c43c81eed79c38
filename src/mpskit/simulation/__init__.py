"""Simulates a Mac: CPU tensors behave as ``mps:0``, with a Mac's errors and memory.

>>> import mpskit, torch
>>> with mpskit.simulate("m1-8gb") as mac:
...     print(torch.ones(2, device="mps").device, torch.mps.driver_allocated_memory())
mps:0 8388608

It cannot show speed, Metal's numerics, the temporaries and caches of MPSGraph, bugs of Metal
kernels, process aborts, asynchrony (a missing synchronise or a non-blocking copy is always right
here), or other programs that compete for the unified memory.

Names bound before entry are not simulated if only a name was replaced (``from torch import
Generator``); functions and methods are. Threads started before entry are outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mpskit._base.arguments import shown
from mpskit.backends.versions import has, require, torch_version
from mpskit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from mpskit.host import Machine
    from mpskit.simulation.lifecycle import SimulatedMac, active

__all__ = ["SimulatedMac", "active", "simulate"]

_MODES = ("cpu", "separate")


def simulate(
    machine: str | Machine = "m1-8gb",
    *,
    macos: str | None = None,
    rng: Literal["cpu", "separate"] = "cpu",
    fallback: bool | None = None,
) -> SimulatedMac:
    """Return a simulated Mac, to use in a ``with`` or as a decorator.

    Args:
        machine: a profile's name (``m1-8gb``, ``macbook-air-m1-8gb``) or a ``Machine``.
        macos: another macOS version than the profile's, ``"14.5"``.
        rng: ``"cpu"`` gives CPU and GPU one random stream, so that a run equals the same run on the
            CPU bit for bit; ``"separate"`` gives the GPU its own, as on a Mac.
        fallback: whether operators that MPS lacks run on the CPU with a warning; by default what
            ``PYTORCH_ENABLE_MPS_FALLBACK`` says on entry.

    Raises:
        UnknownMachineError: no such profile; the message lists near ones.
        ArgumentError: another value cannot be used; ArgumentTypeError: a wrong type.
        UnsupportedTorchError: the installed torch is too old to be simulated on.
    """
    from mpskit.host import Machine, find_machine

    found = find_machine(machine)
    if rng not in _MODES:
        raise ArgumentError(
            f"rng={shown(rng)} is not one of {', '.join(map(repr, _MODES))}", given=rng
        )
    if fallback is not None and not isinstance(fallback, bool):
        raise ArgumentTypeError(
            f"fallback is True, False or None, not {shown(fallback)}", given=fallback
        )
    if macos is not None:
        found = Machine(**found.model_dump() | {"macos": macos})
    require("simulation")
    # First, because in a simulated Mac's child importing torch enters the machine, through
    # lifecycle.
    import torch  # noqa: F401

    from mpskit.simulation.lifecycle import SimulatedMac

    return SimulatedMac(found, rng=rng, fallback=fallback)


def _none_active() -> None:
    """Replace ``active`` on a torch too old for the simulation: always None."""


def __getattr__(name: str) -> Any:
    if name in {"SimulatedMac", "active"}:
        if name == "active" and not has("simulation", torch_version() or "0"):
            return _none_active
        require("simulation")
        import torch  # noqa: F401 - first, as in simulate

        from mpskit.simulation import lifecycle

        return getattr(lifecycle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
