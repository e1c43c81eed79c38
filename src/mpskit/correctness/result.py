"""What ``find_divergence`` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import torch

from mpskit._base.values import Value
from mpskit.errors import ArgumentError

__all__ = ["Divergence", "NonFinite", "OperandFacts", "Phase", "WrongOperator"]

Phase: TypeAlias = Literal["forward", "backward"]


class OperandFacts(Value):
    """A tensor that an operator got.

    Attributes:
        shape: its sizes.
        strides: in elements.
        dtype: its name.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.shape))
        contiguous = torch.empty(self.shape, device="meta").stride() == self.strides
        return f"{self.dtype}[{sizes}]" + ("" if contiguous else f" with strides {self.strides}")


class WrongOperator(Value):
    """The first operator that is wrong on the inputs it got.

    Attributes:
        name: as torch has it: ``aten.mm.default``.
        module: the path of the module that calls it; empty for the model itself.
        phase: forward or backward.
        operands: its tensors, in order.
        error: the device's largest error, relative to the largest value; None for a value that is
            not finite where the CPU's is.
        cpu_error: the CPU's in the same dtype.
        allowed: what rounding explains.
    """

    name: str
    module: str
    phase: Phase
    operands: tuple[OperandFacts, ...]
    error: float | None
    cpu_error: float
    allowed: float

    def __str__(self) -> str:
        off = "off by more than any number (NaN, Inf, another integer or shape)"
        if self.error is not None:
            off = f"off by {self.error:.2g} of the largest value"
        got = ", ".join(map(str, self.operands))
        place = f"in {self.module}" if self.module else "in the model itself"
        return (
            f"{self.name} ({self.phase}, {place}) on {got} is {off}; the CPU "
            f"in the same dtype {self.cpu_error:.2g}, rounding explains {self.allowed:.2g}"
        )


class NonFinite(Value):
    """Where NaN or Inf first arises from finite numbers.

    Attributes:
        kind: ``nan`` or ``inf``.
        operator: as torch has it.
        module: the path of the module that calls it.
        phase: forward or backward.
        on_cpu: whether it arises on the reference as well: then the model is at fault.
    """

    kind: Literal["nan", "inf"]
    operator: str
    module: str
    phase: Phase
    on_cpu: bool

    def __str__(self) -> str:
        place = f"in {self.module}" if self.module else "in the model itself"
        whose = "on the CPU as well" if self.on_cpu else "not on the CPU"
        kind = {"nan": "NaN", "inf": "Inf"}[self.kind]
        return f"{kind} first arises from {self.operator} ({self.phase}, {place}), {whose}"


class Divergence(Value):
    """What a comparison of one step on two devices came to; true where the device is wrong.

    Attributes:
        device: that was checked.
        reference: that it was compared with.
        found: whether the device is wrong.
        module: the path of the first module whose outputs or gradients differ; None without one.
        phase: whether its outputs or its gradients do.
        error: of that module on the device, relative to the largest value; None where infinite.
        cpu_error: of that module on the reference, in the same dtype.
        operator: the first operator that is wrong; None where none is by itself.
        nonfinite: where NaN or Inf first arises; None without any.
        notes: what could not be compared, and why.
        modules_compared: calls of modules whose outputs were compared.
        operators_checked: operators that were run on the CPU as well.
        script: a program that shows the wrong operator with torch alone; None without one.
        script_reproduces: whether the script showed it when it was tried.
    """

    device: str
    reference: str
    found: bool
    module: str | None = None
    phase: Phase | None = None
    error: float | None = None
    cpu_error: float | None = None
    operator: WrongOperator | None = None
    nonfinite: NonFinite | None = None
    notes: tuple[str, ...] = ()
    modules_compared: int = 0
    operators_checked: int = 0
    script: str | None = None
    script_reproduces: bool | None = None

    def __bool__(self) -> bool:
        return self.found

    def __str__(self) -> str:
        lines = [self._verdict()]
        lines += [str(part) for part in (self.operator, self.nonfinite) if part is not None]
        return "\n".join([*lines, *self.notes])

    def _verdict(self) -> str:
        if not self.found:
            calls = (
                "1 module call"
                if self.modules_compared == 1
                else f"{self.modules_compared} module calls"
            )
            return f"{self.device} agrees with {self.reference} ({calls} compared)"
        place = "the model itself" if self.module == "" else self.module
        what = "gradients" if self.phase == "backward" else "outputs"
        off = "not finite" if self.error is None else f"off by {self.error:.2g}"
        own = f" ({self.reference}: {self.cpu_error:.2g})" if self.cpu_error is not None else ""
        return f"{self.device} is wrong: the {what} of {place} are {off}{own}"

    def save_script(self, path: str | Path) -> Path:
        """Write the script to a file and return its path.

        Raises:
            ArgumentError: there is no script, or the file cannot be written.
        """
        if self.script is None:
            raise ArgumentError("no operator was found wrong, so there is no script", given=path)
        target = Path(path)
        try:
            target.write_text(self.script, encoding="utf-8")
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise ArgumentError(f"{str(path)!r} cannot be written: {why}", given=path) from error
        return target
