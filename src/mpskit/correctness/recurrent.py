"""Checks the gradients of recurrent modules with dropout, whose kernels draw their own masks.

MPS and cuDNN drop out inside one kernel, with numbers that no other device can be given. So the
module is compared with itself: the slope that its gradient claims along a direction, against two
forward passes with the same seed. Then its dropout is switched off for the comparison of the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from mpskit.dispatch.nested import tensors_of

__all__ = ["Recurrent", "wrong_dropout"]

_STEP = 0.01  # of the input, along a direction of unit-size elements
_OFF = 0.1  # of the slope: rounding and curvature leave some 1e-3, a forgotten mask its own size
_DIRECTIONS = 3


class Recurrent(NamedTuple):
    """What the check came to.

    Attributes:
        module: the path of the first module whose gradients do not fit its outputs; None for none.
        error: how far its slope is off, relative to its size.
        notes: what could not be checked.
    """

    module: str | None = None
    error: float = 0.0
    notes: tuple[str, ...] = ()


def wrong_dropout(
    model: torch.nn.Module,
    batch: Any,
    step: Callable[[Any, Any], Any],
    device: torch.device,
    train: bool,
) -> Recurrent:
    """Check each recurrent module with dropout on the device, and switch its dropout off.

    Args:
        model: on the CPU; the modules' dropout is 0 afterwards.
        batch: on the CPU.
        step: the step that is compared.
        device: what is checked.
        train: whether gradients are compared; without, dropout is switched off and no more.
    """
    every = model.named_modules()
    found = {n: m for n, m in every if isinstance(m, torch.nn.RNNBase) and _drops(m)}
    if not found:
        return Recurrent()
    before = {name: module.dropout for name, module in found.items()}
    for module in found.values():
        module.dropout = 0.0
    note = "compared without the dropout inside recurrent modules, whose kernels draw it themselves"
    if not train:
        return Recurrent(notes=(note,))
    inputs = _inputs(model, batch, step, found)
    for name, module in found.items():
        if name not in inputs:
            continue
        error = _slope_error(module, before[name], inputs[name], device)
        if error > _OFF:
            return Recurrent(name, error, (note,))
    return Recurrent(notes=(note,))


def _drops(module: torch.nn.RNNBase) -> bool:
    return module.training and module.num_layers > 1 and module.dropout > 0


def _inputs(
    model: torch.nn.Module,
    batch: Any,
    step: Callable[[Any, Any], Any],
    wanted: Iterable[str],
) -> dict[str, Any]:
    """Run the step once on a copy and return the arguments of each module's first call."""
    kept: dict[str, Any] = {}
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules())

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, args: kept.update({name: kept.get(name, args)})

    for name in wanted:
        modules[name].register_forward_pre_hook(keep(name))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            step(copied, batch)
        except Exception:  # noqa: BLE001 - told by the run that is compared
            return kept
    return kept


def _slope_error(
    module: torch.nn.RNNBase, dropout: float, args: Any, device: torch.device
) -> float:
    """Return how far the gradient's slope is from the outputs', relative to its size."""
    moved = copy.deepcopy(module).to(device)
    moved.dropout = dropout
    first, rest = args[0], args[1:]
    if not isinstance(first, torch.Tensor) or first.dtype is not torch.float32:
        return 0.0
    rest = [tuple(t.to(device) for t in tensors_of(r)) if r is not None else None for r in rest]
    generator = torch.Generator().manual_seed(0)
    weights: list[torch.Tensor] = []

    def loss(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        out = next(tensors_of(moved(values, *rest)))
        if not weights:
            weights.append(torch.randn(out.shape, generator=generator).to(device))
        found: torch.Tensor = (out * weights[0]).sum()
        return found

    with _seeds_kept(device), torch.enable_grad():
        values = first.detach().to(device).requires_grad_()
        gradient = torch.autograd.grad(loss(values), values)[0].detach()
        values = values.detach()
        with torch.no_grad():
            if not torch.equal(loss(values).cpu(), loss(values).cpu()):
                return 0.0  # the seed does not decide the mask
            return max(
                _off(loss, values, gradient, torch.randn(first.shape, generator=generator))
                for _ in range(_DIRECTIONS)
            )


def _off(
    loss: Callable[[torch.Tensor], torch.Tensor],
    values: torch.Tensor,
    gradient: torch.Tensor,
    along: torch.Tensor,
) -> float:
    along = along.to(values.device)
    claimed = (gradient * along).sum().item()
    ahead, behind = loss(values + _STEP * along).item(), loss(values - _STEP * along).item()
    real = (ahead - behind) / (2 * _STEP)
    size = max(abs(real), 0.1 * gradient.square().sum().sqrt().item(), 1e-6)
    return abs(claimed - real) / size


class _seeds_kept:  # noqa: N801 - a context manager
    """Puts the random states of the CPU and of a device back."""

    def __init__(self, device: torch.device) -> None:
        get = getattr(torch, "get_device_module", None)
        self._module: Any = get(device) if get is not None and device.type != "cpu" else None

    def __enter__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._own = self._module.get_rng_state() if self._module is not None else None

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._cpu)
        if self._own is not None:
            self._module.set_rng_state(self._own)
