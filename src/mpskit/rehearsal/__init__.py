"""The rehearsal: an unmodified training script on any Mac, in seconds and without its memory.

>>> import mpskit, torch
>>> with mpskit.rehearse("m1-8gb") as run:
...     model = torch.nn.Linear(4096, 4096, device="mps")
...     loss = model(torch.ones(64, 4096, device="mps")).sum()
>>> str(run.report.verdict), run.report.peak_bytes
('fits', 69222656)

The simulated Mac decides where tensors lie and what is refused; operators are answered by the
shapes of their results, as an estimate answers them, so that a model of any size takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import shown
from mpskit._base.lazy import resolver
from mpskit.backends.versions import require
from mpskit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from mpskit.host import Machine
    from mpskit.rehearsal.result import Change, Finding, MachineVerdict, Place, Rehearsal
    from mpskit.rehearsal.run import RehearsalRun

__all__ = [
    "Change",
    "Finding",
    "MachineVerdict",
    "Place",
    "Rehearsal",
    "chosen_machines",
    "rehearse",
]


def rehearse(
    machine: str | Machine | Sequence[str | Machine] = "m1-8gb",
    *,
    steps: int | None = 3,
    strict: bool = False,
    write: bool = False,
    fallback: bool | None = None,
    stepped: Callable[[int], None] | None = None,
) -> RehearsalRun:
    """Return a rehearsal, to use in a ``with`` or as a decorator.

    After the block its ``report`` is there; a decorated function returns the report of each call.

    Args:
        machine: a profile's name or a ``Machine``; of several the code sees the first, and its
            memory is replayed on the others. ``"all"`` are all profiles with a usable GPU.
        steps: optimizer steps after which the block is left; None runs it to its own end.
        strict: raise the Mac's own error at the first thing that stops the run.
        write: let files be written; otherwise everything goes to a temporary folder.
        fallback: whether operators that MPS lacks run on the CPU; by default what
            ``PYTORCH_ENABLE_MPS_FALLBACK`` says on entry.
        stepped: called with the number of steps after each.

    Raises:
        UnknownMachineError: no such profile.
        ArgumentError: no machine, or no step; ArgumentTypeError: a wrong type.
        UnsupportedTorchError: the installed torch is too old to be simulated on.
    """
    given: Any = steps
    if isinstance(given, bool) or not isinstance(given, int | None):
        raise ArgumentTypeError(f"steps is a number or None, not {shown(steps)}", given=steps)
    if steps is not None and steps < 1:
        raise ArgumentError(f"steps={steps}: at least one step is needed", given=steps)
    if fallback is not None and not isinstance(fallback, bool):
        raise ArgumentTypeError(
            f"fallback is True, False or None, not {shown(fallback)}", given=fallback
        )
    machines = chosen_machines(machine)
    require("simulation")
    import torch  # noqa: F401 - first, as in simulate

    from mpskit.rehearsal.run import RehearsalRun

    return RehearsalRun(
        machines, steps=steps, strict=strict, write=write, fallback=fallback, stepped=stepped
    )


def chosen_machines(given: Any) -> list[Machine]:
    """Return the machines that a name, a ``Machine`` or a list of them stands for.

    Raises:
        UnknownMachineError: no such profile.
        ArgumentError: there is none; ArgumentTypeError: it is something else.
    """
    from mpskit.host import HostKind, Machine, find_machine
    from mpskit.host.machines import machines

    if given == "all":
        return [one for one in machines().values() if one.kind is HostKind.APPLE_SILICON]
    if isinstance(given, str | Machine):
        return [find_machine(given)]
    if not isinstance(given, list | tuple):
        raise ArgumentTypeError(
            f"machine is a name, a Machine or a list of them, not {shown(given)}", given=given
        )
    if not given:
        raise ArgumentError("name at least one machine", given=given)
    return [found for one in given for found in chosen_machines(one)]


_HOMES = dict.fromkeys(
    ("Change", "Finding", "MachineVerdict", "Place", "Rehearsal"), "mpskit.rehearsal.result"
)

if not TYPE_CHECKING:
    __getattr__ = resolver(__name__, _HOMES)
