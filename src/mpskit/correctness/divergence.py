"""``find_divergence``: where a device's numbers stop being those of the CPU."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch

from mpskit._base.arguments import check_callable, shown
from mpskit.correctness.accelerator import available_device
from mpskit.correctness.comparing import Deviation, compare
from mpskit.correctness.lockstep import Draws, OpCall, Record, Watch, run_step
from mpskit.correctness.operator_check import Fault, Found, OperatorCheck
from mpskit.correctness.recurrent import wrong_dropout
from mpskit.correctness.result import Divergence, NonFinite, OperandFacts, Phase, WrongOperator
from mpskit.correctness.script import script_for
from mpskit.dispatch.intercept import take_off
from mpskit.dispatch.nested import tensors_of
from mpskit.dispatch.patches import Patches
from mpskit.dispatch.random_state import isolate
from mpskit.errors import ArgumentError, ArgumentTypeError, CheckError, MpskitError
from mpskit.estimate.specs import TensorSpec, map_tensors
from mpskit.estimate.trace.run import build_model
from mpskit.estimate.trace.steps import call_model, default_loss
from mpskit.testing.comparison import tolerance_for

__all__ = ["Divergence", "find_divergence"]

Step = Callable[[Any, Any], Any]

# A module whose operators are each right may differ by rounding that a choice amplifies (argmax, a
# comparison). Only what is this many times above the tolerance is told without an operator.
_GROSS = 100
# Roundings of the largest output or gradient that may be left over where values cancel.
_LEFT_OVER = 4


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
        step: ``(model, batch)``; what it returns is the loss, whose gradients are computed here. A
            step may compute them itself and update the parameters, which are then compared too.
            By default as for ``estimate_training_memory``, and without ``train`` a call of the
            model.
        reference: what it is compared with.
        train: whether gradients are computed and compared.

    Raises:
        ArgumentTypeError: the model is neither a module nor makes one, or ``step`` is no function.
        ArgumentError: device and reference are the same.
        DeviceUnavailableError: torch sees no such device, or no accelerator.
        CheckError: the step fails by itself, on the reference or on the device; the message says
            where.
    """
    checked, compared = available_device(device), available_device(reference)
    if checked == compared:
        raise ArgumentError(f"device and reference are both {str(checked)!r}", given=device)
    if not isinstance(train, bool):
        raise ArgumentTypeError(f"train must be True or False, got {shown(train)}", given=train)
    check_callable("step", step)
    if batch is None:
        raise ArgumentError("give a batch: tensors or TensorSpec, nested", given=batch)

    def search(patches: Patches) -> Divergence:
        # An interrupt may hinder the end of a ``with torch.no_grad()``.
        patches.on_exit(functools.partial(torch.set_grad_enabled, torch.is_grad_enabled()))
        return _Search(_built(model), _filled(batch), step, checked, compared, train).result()

    return Patches.around(search)


def _built(model: Any) -> torch.nn.Module:
    """Return the module itself, or make it, from fixed random numbers."""
    if not isinstance(model, torch.nn.Module) and callable(model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _explained("making the model", "cpu", model)
    return build_model(model).module


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
        step: Step | None,
        device: torch.device,
        reference: torch.device,
        train: bool,
    ) -> None:
        self.batch, self.train, self.whole = batch, train, step is not None
        self.step = step or (default_loss if train else call_model)
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
                f"{self.draws.unmatched} random draws differ between the runs: they do not match"
            )
        self.dtype = _coarsest(got)
        first = next(_differences(got, same, exact, self._tolerance()), None)
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
        gross = first.deviation.error > _GROSS * first.deviation.allowed
        script, shows = script_for(fault, str(self.device)) if fault is not None else (None, None)
        if fault is None and gross:
            self.notes.append(
                "each operator that could be checked is right on the inputs that it got: a kernel "
                "that could not, a copy between devices, or the module's own code is at fault"
            )
        found = fault is not None or gross
        return Divergence(
            found=found,
            module=first.module if found else None,
            phase=first.phase if found else None,
            error=_finite(first.deviation.error) if found else None,
            cpu_error=first.deviation.cpu_error if found else None,
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
            return self._watched(Watch(model, self.draws, check=check), model, batch)

        record: Record = _explained(what, name, run)
        return record

    def _watched(self, watch: Watch, model: torch.nn.Module, batch: Any) -> Record:
        """Run the step with every seed its own: those of Python and NumPy start anew."""

        def run(patches: Patches) -> Record:
            isolate(patches, torch.Generator().manual_seed(0))
            patches.on_exit(functools.partial(take_off, watch))
            how = {"train": self.train, "whole": self.whole}
            return run_step(watch, model, self.step, batch, **how)

        return Patches.around(run)

    def _exact(self, same: Record) -> Record:
        """Run the step in float64 on the CPU; where that fails, the reference stands for it."""

        def run() -> Record:
            model = copy.deepcopy(self.model).double()
            batch = map_tensors(
                self.batch, lambda t: t.double() if t.is_floating_point() else t.clone()
            )
            return self._watched(Watch(model, self.draws, lift=True), model, batch)

        try:
            return run()
        except Exception as error:  # noqa: BLE001 - a step that insists on its dtypes
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            self.notes.append(f"compared with {self.reference} alone: no run in float64 ({cause})")
            return same
        finally:
            self.draws.rewind()

    def _tolerance(self) -> _Tolerance:
        name = str(self.dtype).removeprefix("torch.")
        rounding = tolerance_for(self.device.type, name).rtol
        return _Tolerance(rounding, _LEFT_OVER * torch.finfo(self.dtype).eps / rounding)

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


class _Tolerance(NamedTuple):
    """The relative error that is allowed, and the least part of the largest it is relative to."""

    rounding: float
    least: float


class _Difference:
    """The first outputs or gradients that differ."""

    def __init__(self, module: str, phase: Phase, deviation: Deviation) -> None:
        self.module, self.deviation = module, deviation
        self.phase: Phase = phase


def _differences(
    got: Record, same: Record, exact: Record, tolerance: _Tolerance
) -> Iterator[_Difference]:
    """Yield what differs: outputs in the order of the modules, then gradients as they arrive.

    What ought to be zero is compared with the largest value of its kind, of which rounding leaves
    some.
    """
    scale = tolerance.least * _largest(exact.outputs)

    def wrong(one: torch.Tensor, other: torch.Tensor, right: torch.Tensor) -> Deviation | None:
        found = compare(one, other, right, rounding=tolerance.rounding, scale=scale)
        return found if found.wrong else None

    for site, outputs in got.outputs.items():
        pairs = zip(outputs, same.outputs.get(site, ()), exact.outputs.get(site, ()), strict=False)
        for found in filter(None, (wrong(*three) for three in pairs)):
            yield _Difference(site.module, "forward", found)
    for one, other, right in zip(got.result, same.result, exact.result, strict=False):
        off = wrong(one, other, right) if one.is_floating_point() else None
        if off is not None:
            yield _Difference("", "forward", off)
    scale = tolerance.least * max(_largest(exact.output_gradients), _largest(exact.gradients))
    for module, *gradients in _gradients(got, same, exact):
        off = wrong(*gradients)
        if off is not None:
            yield _Difference(module, "backward", off)


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


def _largest(kept: Any) -> float:
    finite = (t[t.isfinite()] for t in tensors_of(kept))
    return max((t.abs().max().item() for t in finite if t.numel()), default=0.0)


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
        error=_finite(fault.deviation.error),
        cpu_error=fault.deviation.cpu_error,
        allowed=fault.deviation.allowed,
    )


def _phase(call: OpCall) -> Phase:
    return "backward" if call.backward else "forward"


def _finite(error: float) -> float | None:
    return error if error != float("inf") else None
