"""A Mac you do not have: CPU tensors that behave as ``mps:0``, with a Mac's errors and memory.

>>> import mpskit, torch
>>> with mpskit.simulate("m1-8gb") as mac:
...     print(torch.ones(2, device="mps").device, torch.mps.driver_allocated_memory())
mps:0 8388608

What it cannot show: speed, Metal's numerics, the temporaries and caches of MPSGraph, bugs of Metal
kernels, aborts of the process, asynchrony (a missing synchronise or a non-blocking copy is always
right here), and other programs that want the same unified memory.

Names bound before entry escape where only a name was replaced (``from torch import Generator``);
functions and methods do not. Threads that ran before entry are outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

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
    """Return a simulated Mac, to be entered by ``with`` or used as a decorator.

    Args:
        machine: a profile's name (``m1-8gb``, ``macbook-air-m1-8gb``) or a ``Machine``.
        macos: another macOS version than the profile's, ``"14.5"``.
        rng: ``"cpu"`` gives CPU and GPU one random stream, so that a run is bit-equal to the same
            run on the CPU; ``"separate"`` gives the GPU its own, as on a Mac.
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
        raise ArgumentError(f"rng={rng!r} is not one of {', '.join(map(repr, _MODES))}", given=rng)
    if fallback is not None and not isinstance(fallback, bool):
        raise ArgumentTypeError(
            f"fallback is True, False or None, not {fallback!r}", given=fallback
        )
    if macos is not None:
        found = Machine(**found.model_dump() | {"macos": macos})
    require("simulation")
    # First: in a simulated Mac's child, importing torch enters the machine by way of lifecycle.
    import torch  # noqa: F401

    from mpskit.simulation.lifecycle import SimulatedMac

    return SimulatedMac(found, rng=rng, fallback=fallback)


def _none_active() -> None:
    """Stand for ``active`` on a torch too old for a simulated Mac: there is none."""


def __getattr__(name: str) -> Any:
    if name in {"SimulatedMac", "active"}:
        if name == "active" and not has("simulation", torch_version() or "0"):
            return _none_active
        require("simulation")
        import torch  # noqa: F401 - first, as in simulate

        from mpskit.simulation import lifecycle

        return getattr(lifecycle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
