"""Where a plan is for: a machine's device, what it gives to a job, and what it computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpskit._base.arguments import shown
from mpskit._base.data import read_toml
from mpskit._base.sizes import check_size
from mpskit.allocator.watermarks import HIGH, LOW
from mpskit.backends.kinds import ESTIMATED
from mpskit.backends.precisions import half_named
from mpskit.environment.rules import low_for, ratio_text
from mpskit.errors import ArgumentError
from mpskit.estimate.result import usable_bytes
from mpskit.host import Host, Machine, detect_host
from mpskit.host.kinds import HostKind
from mpskit.host.named import MachineLike, as_host
from mpskit.memory.budget import MemoryBudget, memory_budget
from mpskit.training.precision import Precision, precision_for

if TYPE_CHECKING:
    from mpskit.backends.memory import DeviceLike

__all__ = ["THIS_MACHINE", "Place", "find_place"]

THIS_MACHINE = "this machine"

# CUDA cards compute in half precision at twice the rate of float32 or more: 18.7 against 9.3
# TFLOPS on a P100, more with tensor cores (NVIDIA's datasheets).
_HALF_ON_CUDA = 2.0

_VIRTUAL = (
    "a virtual Mac may offer MPS and allocate nothing, as GitHub's hosted runners do "
    "(actions/runner-images#9918): get_optimal_device() tries it there and takes the CPU where it "
    "fails, for which device='cpu' plans"
)


@dataclass(frozen=True)
class Place:
    """A machine as a plan sees it.

    Attributes:
        name: of the machine; ``this machine`` for the one that plans.
        machine: what names it to every rule; None for this machine.
        device: ``mps``, ``cuda`` or ``cpu``.
        usable_bytes: what it gives to a job.
        recommended_bytes: Metal's recommended working set; None off MPS.
        precision: what it computes in.
        host: its facts.
    """

    name: str
    machine: MachineLike | None
    device: str
    usable_bytes: int
    recommended_bytes: int | None
    precision: Precision
    host: Host

    @property
    def half(self) -> str | None:
        """What frozen weights can be stored in: ``bf16``, ``fp16``, or None on a CPU.

        Every Mac that stores bfloat16 computes with it, if slower; it has float32's range. A CUDA
        card that only emulates it takes float16.
        """
        if self.device == "cpu":
            return None
        stored, best = self.precision.storage_dtypes, self.precision.inference_dtype
        if self.device == "mps" and "bfloat16" in stored:
            best = "bfloat16"
        return half_named(best)

    @property
    def fastest(self) -> str | None:
        """What a model that is not trained is stored in; None for float32."""
        return half_named(self.precision.inference_dtype)

    @property
    def mixed(self) -> str | None:
        """The precision of autocast in training: what is advised, else what is possible."""
        casts = [self.precision.autocast_dtype, *self.precision.autocast_dtypes]
        found = [name for dtype in casts if (name := half_named(dtype))]
        return f"{found[0]}-mixed" if found and self.device != "cpu" else None

    @property
    def half_rate(self) -> float:
        """Arithmetic rate of half precision / that of float32."""
        if self.device == "cuda":
            return _HALF_ON_CUDA
        emulated = self.host.chip is not None and self.host.chip.bf16_native is False
        if self.device != "mps" or emulated:
            return 1.0
        return float(read_toml("speed.toml")["cost"]["half_mps"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a plan for another machine takes on trust: nothing is tried there."""
        virtual = self.host.kind is HostKind.MAC_VM
        if self.machine is None or self.device != "mps" or not virtual:
            return ()
        return (_VIRTUAL,)

    def environment(self, cap: int) -> dict[str, str]:
        """Return the variables that hold MPS to ``cap`` bytes; they count before torch's import."""
        if self.device != "mps" or not self.recommended_bytes:
            return {}
        ratio = cap / self.recommended_bytes
        return {HIGH: ratio_text(ratio), LOW: low_for(ratio)}


def find_place(
    machine: MachineLike | None = None,
    device: DeviceLike | None = None,
    budget: MemoryBudget | int | str | None = None,
) -> Place:
    """Return where a plan is for.

    Args:
        machine: a machine's name or description; None is this machine.
        device: ``mps``, ``cuda`` or ``cpu``; None is the machine's own.
        budget: what a job may use, instead of what the machine gives.

    Raises:
        UnknownMachineError: no machine has that name.
        ArgumentError: no device of that name, or a budget of nothing.
        ArgumentTypeError: an argument has the wrong type.
    """
    given = memory_budget(device, machine=machine)
    kind = given.device.partition(":")[0]
    if kind not in ESTIMATED:
        raise ArgumentError(
            f"no plan for {shown(kind)}: memory is estimated for {', '.join(ESTIMATED)}",
            given=device,
        )
    usable = given.usable_bytes if budget is None else usable_bytes(budget)
    if usable is None:
        raise ArgumentError(
            "nobody knows how much memory there is: give budget=, such as '12GiB'", given=machine
        )
    check_size("budget", usable)
    return Place(
        name=_name(machine),
        machine=machine,
        device=kind,
        usable_bytes=usable,
        recommended_bytes=given.recommended_bytes if kind == "mps" else None,
        precision=precision_for(kind, machine),
        host=detect_host() if machine is None else as_host(machine),
    )


def _name(machine: MachineLike | None) -> str:
    if machine is None:
        return THIS_MACHINE
    if isinstance(machine, str):
        return machine
    found: Any = machine.name if isinstance(machine, Machine) else machine.summary
    return str(found or machine)
