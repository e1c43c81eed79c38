"""What an estimate says: the figures, where the peak is, and whether it fits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpskit._base.arguments import shown
from mpskit._base.sizes import check_size, format_bytes, parse_bytes
from mpskit._base.values import Value
from mpskit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from mpskit.host.named import MachineLike
    from mpskit.memory import MemoryBudget

__all__ = [
    "KINDS",
    "TIGHT_SHARE",
    "Difference",
    "MemoryEstimate",
    "ModuleUse",
    "Peak",
    "TimelinePoint",
    "Verdict",
    "usable_bytes",
]

# Below this share of the budget left over, a job that fits is called tight: the next longer
# batch, or a browser, takes as much.
TIGHT_SHARE = 0.10

# Kind of memory -> its name in the guides' breakdown table, in the order of the table.
KINDS = {
    "parameters": "model parameters",
    "buffers": "buffers",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "forward activations",
    "temporaries": "temporaries",
    "batch": "batch",
    "slack": "allocator's slack",
}


class ModuleUse(Value):
    """What one module holds at the peak: its own allocations, not its children's.

    Attributes:
        module: dotted path in the model (empty for the model itself and the code around it).
        bytes_at_peak: bytes allocated by the module that are alive at the peak, without
            parameters, gradients and optimizer state.
    """

    module: str
    bytes_at_peak: int


class TimelinePoint(Value):
    """Live bytes by kind at one moment of the traced steps.

    Attributes:
        event: number of the allocation event, from 0 at the start of the first step.
        step: which step it belongs to, from 0.
        phase: ``forward``, ``backward``, ``optimizer`` or ``inference``.
        driver_bytes: what the target's allocator holds at that moment.
    """

    event: int
    step: int
    phase: str
    parameters_bytes: int = 0
    buffers_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    activations_bytes: int = 0
    temporaries_bytes: int = 0
    batch_bytes: int = 0
    slack_bytes: int = 0
    driver_bytes: int = 0

    @property
    def live_bytes(self) -> int:
        """Bytes in live tensors, all kinds together."""
        return sum(getattr(self, f"{kind}_bytes") for kind in KINDS)


class Peak(Value):
    """Where the peak is: the operator whose allocation reached it.

    Attributes:
        op: the operator's name in ATen.
        module: dotted path of the module; in a backward pass the one whose forward is undone.
        phase: ``forward``, ``backward``, ``optimizer`` or ``inference``.
        step: which step, from 0.
        line: ``file:line`` of the innermost call outside installed packages and torch; in a
            backward pass that of the forward call that is undone, where it is known. None where
            no line of the user's own leads to the operator.
    """

    op: str
    module: str
    phase: str
    step: int = 0
    line: str | None = None

    def __str__(self) -> str:
        module = self.module or "the step itself"
        line = "" if self.line is None else f", {self.line}"
        return f"{self.op} in {module} ({self.phase}, step {self.step + 1}){line}"


class Verdict(Value):
    """Whether an estimate fits a budget.

    Attributes:
        answer: ``fits``; ``tight`` when less than a tenth of the budget is left, or when the
            tensors fit and the allocator's heaps do not; ``does-not-fit`` when the tensors alone
            are more than the budget.
        margin_bytes: the budget less the need; negative when it does not fit.
        needed_bytes: what the job needs: the driver's figure where there is one.
        usable_bytes: the budget.
    """

    answer: Literal["fits", "tight", "does-not-fit"]
    margin_bytes: int
    needed_bytes: int
    usable_bytes: int

    def __bool__(self) -> bool:
        return self.answer != "does-not-fit"

    def __str__(self) -> str:
        need, usable = format_bytes(self.needed_bytes), format_bytes(self.usable_bytes)
        margin = format_bytes(abs(self.margin_bytes))
        if self.answer == "tight" and self.margin_bytes < 0:
            return (
                f"tight: it should run, and may swap: the tensors fit the {usable} usable, but the "
                f"allocator would hold {need}, {margin} more"
            )
        left = f"{margin} left" if self.margin_bytes >= 0 else f"{margin} too much"
        return f"{self.answer}: needs {need} of {usable} usable, {left}"


class Difference(Value):
    """One estimate less another, kind by kind, in bytes (negative: the other needs less)."""

    parameters_bytes: int
    buffers_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    temporaries_bytes: int
    batch_bytes: int
    slack_bytes: int
    peak_bytes: int
    driver_bytes: int

    def __str__(self) -> str:
        rows = [(text, getattr(self, f"{kind}_bytes")) for kind, text in KINDS.items()]
        rows += [("peak", self.peak_bytes), ("driver", self.driver_bytes)]
        return "\n".join(f"{text:<20}{_signed(count):>14}" for text, count in rows if count)


class MemoryEstimate(Value):
    """What a step takes on the target: every kind of memory at the peak, in bytes.

    The kinds add up to ``peak_bytes``: they are what is alive at the peak, not each kind's own
    maximum. ``driver_bytes`` is what the target's allocator holds from the system by then:
    whole heaps on MPS, segments on CUDA; for the CPU it equals ``peak_bytes``.

    Attributes:
        device: ``cpu``, ``mps`` or ``cuda``, the target, whatever machine traced it.
        torch_version: the version whose kernels, defaults and allocator were assumed.
        base: dtype of the frozen weights, where it is not the precision's.
        activations_bytes: tensors of the forward pass that were kept for the backward pass.
        temporaries_bytes: the rest: intermediate results alive at the peak.
        slack_bytes: what the allocator adds to the sizes asked for and still counts as in use:
            rounding, and cached buffers larger than the request (MPS to torch 2.13).
        peak_margin_bytes: how much higher the peak can be, where what a kernel takes while it runs
            is known as a range only (convolutions and half-precision products on the CPU).
        peak: where the peak is.
        method: ``traced``, or ``reference`` from a config.
        notes: assumptions that the figures rest on, one sentence each.
    """

    device: str
    torch_version: str
    precision: str = "fp32"
    base: str | None = None
    method: Literal["traced", "reference"] = "traced"
    parameters_bytes: int
    buffers_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    activations_bytes: int = 0
    temporaries_bytes: int = 0
    batch_bytes: int = 0
    slack_bytes: int = 0
    peak_bytes: int
    peak_margin_bytes: int = 0
    driver_bytes: int
    peak: Peak | None = None
    top_modules: tuple[ModuleUse, ...] = ()
    timeline: tuple[TimelinePoint, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def peak_high_bytes(self) -> int:
        """The most that the peak can be: :meth:`fits` decides by it."""
        return self.peak_bytes + self.peak_margin_bytes

    def fits(
        self,
        budget: MemoryBudget | MachineLike | int | None = None,
        *,
        machine: MachineLike | None = None,
    ) -> Verdict:
        """Say whether the step fits a budget.

        Args:
            budget: a ``MemoryBudget`` (its ``usable_bytes``), a machine, bytes, or a size such as
                ``"16GiB"``.
            machine: a machine: a name (``"m1-16gb"``, ``"T4"``), a :class:`mpskit.Machine` or a
                :class:`mpskit.Host`. What counts is the memory of its own device, whatever
                device the estimate is for.

        Raises:
            UnknownMachineError: no machine has that name.
            ArgumentTypeError: it is none of these.
            ArgumentError: both are given or neither, or nobody knows the machine's memory.
        """
        usable = usable_bytes(budget, machine)
        driver = self.driver_bytes + self.peak_margin_bytes
        margin = usable - driver
        answer: Literal["fits", "tight", "does-not-fit"] = "fits"
        if self.peak_high_bytes > usable:
            answer, margin = "does-not-fit", usable - max(self.peak_high_bytes, driver)
        elif margin < usable * TIGHT_SHARE:
            answer = "tight"
        return Verdict(
            answer=answer,
            margin_bytes=margin,
            needed_bytes=usable - margin,
            usable_bytes=usable,
        )

    def diff(self, other: MemoryEstimate) -> Difference:
        """Return this estimate less ``other``, kind by kind."""
        return Difference(
            **{name: getattr(self, name) - getattr(other, name) for name in Difference.model_fields}
        )

    def plot(
        self, path: str | Path, *, budget: MemoryBudget | MachineLike | int | None = None
    ) -> Path:
        """Draw the timeline as stacked areas into an image file and return its path.

        Args:
            path: the file; its suffix chooses the format.
            budget: as for :meth:`fits`; what it allows is drawn as a line.

        Raises:
            MissingExtraError: matplotlib is not installed (``pip install 'mpskit[plot]'``).
            ArgumentError: there is no timeline (an estimate from a config has none).
        """
        from mpskit.estimate.plot import plot_timeline

        usable = None if budget is None else ("usable", usable_bytes(budget))
        return plot_timeline(self, Path(path), usable=usable)

    def __str__(self) -> str:
        rows = [(text, getattr(self, f"{kind}_bytes")) for kind, text in KINDS.items()]
        base = f" on a {self.base} base" if self.base else ""
        head = f"{self.precision}{base}, torch {self.torch_version}"
        lines = [f"memory on {self.device} ({head})"]
        lines += [_row(text, count, self.peak_bytes) for text, count in rows if count]
        lines += [_row("total at the peak", self.peak_bytes, self.peak_bytes)]
        if self.peak_margin_bytes:
            lines += [f"  {'or at most':<24}{format_bytes(self.peak_high_bytes):>12}"]
        lines += [f"  {'held by the allocator':<24}{format_bytes(self.driver_bytes):>12}"]
        if self.peak is not None:
            lines.append(f"peak at {self.peak}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _row(text: str, count: int, total: int) -> str:
    return f"  {text:<24}{format_bytes(count):>12}{count / max(total, 1):>7.0%}"


def _signed(count: int) -> str:
    return f"{'+' if count > 0 else '-'}{format_bytes(abs(count))}"


def usable_bytes(
    budget: MemoryBudget | MachineLike | int | None, machine: MachineLike | None = None
) -> int:
    """Return the bytes that a budget of any accepted sort allows.

    Raises:
        UnknownMachineError: no machine has that name.
        ArgumentTypeError: it is no budget.
        ArgumentError: both arguments are given or neither, the budget is none, or nobody knows the
            machine's memory.
    """
    if (budget is None) == (machine is None):
        raise ArgumentError("give a budget or machine=, one of them", given=budget)
    given: Any = machine if budget is None else budget
    if isinstance(given, bool):
        raise ArgumentTypeError(f"a budget is not {shown(given)}", given=given)
    if isinstance(given, int):
        if given <= 0:
            raise ArgumentError(f"a budget of {shown(given)} bytes is none", given=given)
        if given > sys.maxsize:
            raise ArgumentError(f"no machine has a budget of {shown(given)} bytes", given=given)
        return given
    usable = getattr(given, "usable_bytes", None)
    if isinstance(usable, int):
        return usable
    if isinstance(given, str) and (size := _size(given)) is not None:
        return size
    return _machine_bytes(given)


def _machine_bytes(machine: Any) -> int:
    from mpskit.host import Host, Machine
    from mpskit.memory.budget import machine_budget

    if not isinstance(machine, str | Machine | Host):
        raise ArgumentTypeError(
            f"fits() takes a MemoryBudget, a machine or bytes, not {type(machine).__name__}",
            given=machine,
        )
    budget = machine_budget(machine)
    if budget.usable_bytes is None:
        raise ArgumentError(f"nobody knows what {machine} can give to a job", given=machine)
    return budget.usable_bytes


def _size(text: str) -> int | None:
    """Return the bytes of a size such as ``16GiB``; None for what may be a machine's name."""
    try:
        size = parse_bytes(text)
    except ArgumentError:
        return None
    return check_size("a budget", size)
