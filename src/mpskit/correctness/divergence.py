"""``find_divergence``: where a device's numbers stop being those of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from mpskit._base.values import Value
from mpskit.correctness.accelerator import available_device
from mpskit.correctness.comparing import Comparison, compare, tensors_of
from mpskit.correctness.lockstep import Draws, OpCall, Record, Site, Watch, run_step
from mpskit.correctness.operator_check import Fault, Found, OperatorCheck
from mpskit.correctness.recurrent import wrong_dropout
from mpskit.correctness.script import script_for
from mpskit.errors import ArgumentError, ArgumentTypeError, CheckError, MpskitError
from mpskit.estimate.specs import TensorSpec, map_tensors
from mpskit.estimate.trace.run import build_model
from mpskit.estimate.trace.steps import call_model, default_loss
from mpskit.testing.comparison import tolerance_for

__all__ = ["Divergence", "NonFinite", "OperandFacts", "WrongOperator", "find_divergence"]

Phase = Literal["forward", "backward"]
Step = Callable[[Any, Any], Any]

# A module whose operators are each right may differ by rounding that a choice amplifies (argmax, a
# comparison). Only what is this many times above the tolerance is told without an operator.
_GROSS = 100


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
        off = "NaN or Inf, or of another shape" if self.error is None else f"off by {self.error:.2g}"
        got = ", ".join(map(str, self.operands))
        place = f"in {self.module}" if self.module else "in the model itself"
        return (
            f"{self.name} ({self.phase}, {place}) on {got} is {off} of the largest value; the CPU "
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
            calls = "1 module call" if self.modules_compared == 1 else f"{self.modules_compared} module calls"
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


def find_divergence(
    model: Any,
    batch: Any,
    *,
    device: str | torch.device | None = None,
    step: Step | None = None,
    reference: str | torch.device = "cpu",
    train: bool = True,
) -> Divergence:
    """Run one step on a device and on the CPU, and find the first operator that is wrong.

    Both runs have the same weights, inputs and random draws. Outputs and gradients are compared
    module by module, against a run in float64 that tells rounding from faults; inside the first
    module that differs each operator is run on the CPU as well, on the inputs that it got.
    The model is copied: it, its gradients and every random state stay as they are. The copies take
    the model's memory once on the device and three times on the CPU.

    Args:
        model: an ``nn.Module``, a class, or a callable that makes one. Its training flags are used
            as they are.
        batch: tensors or ``TensorSpec`` (floats are then random), nested.
        device: what is checked; None for this machine's accelerator.
        step: ``(model, batch)``; what it returns is the loss. By default as for
            ``estimate_training_memory``, and without ``train`` a call of the model.
        reference: what it is compared with.
        train: whether gradients are computed and compared.

    Raises:
        ArgumentTypeError: the model is neither a module nor makes one.
        ArgumentError: device and reference are the same.
        DeviceUnavailableError: torch sees no such device, or no accelerator.
        CheckError: the step fails by itself, on the reference or on the device; the message says
            where.
    """
    checked, compared = available_device(device), available_device(reference)
    if checked == compared:
        raise ArgumentError(f"device and reference are both {str(checked)!r}", given=device)
    if not isinstance(train, bool):
        raise ArgumentTypeError(f"train must be True or False, got {train!r}", given=train)
    if batch is None:
        raise ArgumentError("give a batch: tensors or TensorSpec, nested", given=batch)
    call = step or (default_loss if train else call_model)
    return _Search(_built(model), _filled(batch), call, checked, compared, train).result()


def _built(model: Any) -> torch.nn.Module:
    """Return the module itself, or make it, from fixed random numbers."""
    if not isinstance(model, torch.nn.Module) and callable(model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _explained("making the model", "cpu", model)
    return build_model(model)[0]


def _filled(batch: Any) -> Any:
    generator = torch.Generator().manual_seed(0)

    def fill(item: Any) -> torch.Tensor:
        if not isinstance(item, TensorSpec):
            found: torch.Tensor = item.detach().to("cpu")
            return found
        dtype = item.torch_dtype()
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(item.shape, generator=generator).to(dtype)
        return torch.full(item.shape, item.fill, dtype=dtype)

    return map_tensors(batch, fill)


def _explained(what: str, device: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Found, MpskitError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckError(f"{what} fails on {device}: {cause}", given=error) from error


class _Search:
    """One comparison."""

    def __init__(
        self,
        model: torch.nn.Module,
        batch: Any,
        step: Step,
        device: torch.device,
        reference: torch.device,
        train: bool,
    ) -> None:
        self.batch, self.step, self.train = batch, step, train
        self.device, self.reference = device, reference
        self.draws = Draws()
        self.notes: list[str] = []
        self.checked = 0
        self.dtype = torch.float32
        self.model = self._copied(model)

    def result(self) -> Divergence:
        """Compare, and narrow down what differs."""
        recurrent = wrong_dropout(self.model, self.batch, self.step, self.device, self.train)
        self.notes += recurrent.notes
        same = self._run(self.reference)
        self.draws.rewind()
        exact = self._exact(same)
        got = self._run(self.device)
        if self.draws.unmatched:
            self.notes.append(
                f"{self.draws.unmatched} random draws of the runs do not match: their numbers differ"
            )
        self.dtype = _coarsest(got)
        first = next(_differences(got, same, exact, self._rounding()), None)
        nonfinite = self._nonfinite(got, same)
        compared = sum(site in got.outputs for site in same.outputs)
        common = {
            "device": str(self.device),
            "reference": str(self.reference),
            "nonfinite": nonfinite,
            "modules_compared": compared,
        }
        if recurrent.module is not None:
            return Divergence(
                found=True,
                module=recurrent.module,
                phase="backward",
                error=recurrent.error,
                cpu_error=0.0,
                notes=tuple(self.notes),
                **common,
            )
        if first is None:
            return Divergence(found=False, notes=tuple(self.notes), **common)
        return self._narrowed(first, common)

    def _narrowed(self, first: _Difference, common: dict[str, Any]) -> Divergence:
        fault = self._fault(first)
        gross = first.comparison.error > _GROSS * first.comparison.allowed
        script, shows = script_for(fault, str(self.device)) if fault is not None else (None, None)
        if fault is None:
            why = "it is far above rounding" if gross else "a choice amplifies rounding there"
            self.notes.append(
                f"outputs or gradients of {first.module or 'the model itself'} differ by "
                f"{first.comparison.error:.2g}, and each operator is right on the inputs that it "
                f"got: {why}"
            )
        found = fault is not None or gross
        return Divergence(
            found=found,
            module=first.module if found else None,
            phase=first.phase if found else None,
            error=_finite(first.comparison.error) if found else None,
            cpu_error=first.comparison.cpu_error if found else None,
            operator=None if fault is None else _described(fault),
            notes=tuple(self.notes),
            operators_checked=self.checked,
            script=script,
            script_reproduces=shows,
            **common,
        )

    def _copied(self, model: torch.nn.Module) -> torch.nn.Module:
        def copied() -> torch.nn.Module:
            with torch.no_grad():
                found = copy.deepcopy(model).to("cpu")
            for parameter in found.parameters():
                parameter.grad = None
            return found

        found: torch.nn.Module = _explained("copying the model", "cpu", copied)
        return found

    def _run(self, device: torch.device, check: OperatorCheck | None = None) -> Record:
        """Run the step on a device.

        Raises:
            CheckError: it fails there.
            Found: an operator that was checked is wrong.
        """
        name = str(device)
        what = "the step" if device == self.reference else f"the step works on {self.reference} and"

        def run() -> Record:
            model = copy.deepcopy(self.model).to(device)
            batch = map_tensors(self.batch, lambda t: t.clone().to(device))
            watch = Watch(model, self.draws, check=check)
            return run_step(watch, model, self.step, batch, train=self.train)

        record: Record = _explained(what, name, run)
        return record

    def _exact(self, same: Record) -> Record:
        """Run the step in float64 on the CPU; where that fails, the reference stands for it."""

        def run() -> Record:
            model = copy.deepcopy(self.model).double()
            batch = map_tensors(
                self.batch, lambda t: t.double() if t.is_floating_point() else t.clone()
            )
            watch = Watch(model, self.draws, lift=True)
            return run_step(watch, model, self.step, batch, train=self.train)

        try:
            return run()
        except Exception as error:  # noqa: BLE001 - a step that insists on its dtypes
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            self.notes.append(f"compared with {self.reference} alone: no run in float64 ({cause})")
            return same
        finally:
            self.draws.rewind()

    def _rounding(self) -> float:
        name = str(self.dtype).removeprefix("torch.")
        return tolerance_for(self.device.type, name).rtol

    def _fault(self, first: _Difference) -> Fault | None:
        """Look for the wrong operator: inside the module first, then anywhere."""
        inside = first.module

        def within(call: OpCall) -> bool:
            if call.backward is not (first.phase == "backward"):
                return False
            return not inside or call.backward or f"{call.module}.".startswith(f"{inside}.")

        return self._searched(within) or self._searched(lambda _: True)

    def _searched(
        self, wanted: Callable[[OpCall], bool], nonfinite: Literal["nan", "inf"] | None = None
    ) -> Fault | None:
        return self._searched_on(self.device, wanted, nonfinite)

    def _searched_on(
        self, device: torch.device, wanted: Callable[[OpCall], bool], nonfinite: str | None
    ) -> Fault | None:
        self.draws.rewind()
        check = OperatorCheck(device.type, wanted, nonfinite)
        try:
            self._run(device, check)
        except Found:
            pass
        finally:
            self.checked += check.checked
        for name, why in check.unchecked.items():
            note = f"{name} cannot be checked by itself: {why}"
            if note not in self.notes:
                self.notes.append(note)
        return check.fault

    def _nonfinite(self, got: Record, same: Record) -> NonFinite | None:
        for kind in ("nan", "inf"):
            if not _holds(got, kind):
                continue
            fault = self._searched(lambda _: True, kind)
            if fault is not None:
                return NonFinite(
                    kind=kind,
                    operator=str(fault.call.func),
                    module=fault.call.module,
                    phase=_phase(fault.call),
                    on_cpu=_holds(same, kind),
                )
        return None


class _Difference:
    """The first outputs or gradients that differ."""

    def __init__(self, module: str, phase: Phase, comparison: Comparison) -> None:
        self.module, self.phase, self.comparison = module, phase, comparison


def _differences(
    got: Record, same: Record, exact: Record, rounding: float
) -> Iterator[_Difference]:
    """Yield what differs: outputs in the order of the modules, then gradients as they arrive."""

    def wrong(one: torch.Tensor, other: torch.Tensor, right: torch.Tensor) -> Comparison | None:
        found = compare(one, other, right, rounding=rounding)
        return found if found.wrong else None

    for site, outputs in got.outputs.items():
        pairs = zip(outputs, same.outputs.get(site, ()), exact.outputs.get(site, ()), strict=False)
        for found in filter(None, (wrong(*three) for three in pairs)):
            yield _Difference(site.module, "forward", found)
    for one, other, right in zip(got.result, same.result, exact.result, strict=False):
        found = wrong(one, other, right) if one.is_floating_point() else None
        if found is not None:
            yield _Difference("", "forward", found)
    for gradients in _gradients(got, same, exact):
        found = wrong(*gradients[1:])
        if found is not None:
            yield _Difference(gradients[0], "backward", found)


def _gradients(
    got: Record, same: Record, exact: Record
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield the gradients of outputs as they arrived, each with its module's parameters."""
    left = dict(got.gradients)

    def own(module: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
        for name in [name for name in left if name.rpartition(".")[0] == module]:
            gradient = left.pop(name)
            if name in same.gradients and name in exact.gradients:
                yield module, gradient, same.gradients[name], exact.gradients[name]

    for site, gradient in got.output_gradients.items():
        if site in same.output_gradients and site in exact.output_gradients:
            yield site.module, gradient, same.output_gradients[site], exact.output_gradients[site]
        yield from own(site.module)
    for module in dict.fromkeys(name.rpartition(".")[0] for name in got.gradients):
        yield from own(module)


def _holds(record: Record, kind: str) -> bool:
    bad = torch.isnan if kind == "nan" else torch.isinf
    kept = (record.outputs.values(), record.output_gradients, record.gradients, record.result)
    return any(bool(bad(t).any()) for t in tensors_of(list(kept[0]) + list(kept[1:])))


def _coarsest(record: Record) -> torch.dtype:
    kept: list[Any] = [list(record.outputs.values()), record.gradients, record.result]
    dtypes = {t.dtype for t in tensors_of(kept) if t.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def _described(fault: Fault) -> WrongOperator:
    operands = (
        OperandFacts(
            shape=tuple(t.shape),
            strides=tuple(t.stride()),
            dtype=str(t.dtype).removeprefix("torch."),
        )
        for t in tensors_of((fault.args, fault.kwargs))
    )
    return WrongOperator(
        name=str(fault.call.func),
        module=fault.call.module,
        phase=_phase(fault.call),
        operands=tuple(operands),
        error=_finite(fault.comparison.error),
        cpu_error=fault.comparison.cpu_error,
        allowed=fault.comparison.allowed,
    )


def _phase(call: OpCall) -> Phase:
    return "backward" if call.backward else "forward"


def _finite(error: float) -> float | None:
    return error if error != float("inf") else None
