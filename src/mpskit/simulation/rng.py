"""Random numbers: ``torch.Generator(device="mps")``, and one stream or two.

With ``rng="cpu"`` the simulated GPU draws from the CPU's default generator, so a run gives the
same numbers as on the CPU, bit for bit. With ``rng="separate"`` it has a default generator of its
own, as a Mac has: two streams, seeded alike by ``torch.manual_seed``. The numbers themselves are
the CPU's in both: Metal's generator is another (Philox) and is not imitated.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from mpskit.dispatch.patches import Patches
from mpskit.dispatch.random_state import draw
from mpskit.simulation.core import MPS, Simulation, asks_mps, device_of

__all__ = ["Randomness", "install"]

_Base = torch._C.Generator


class MpsGenerator(_Base):
    """A generator that reports the simulated device."""

    device = MPS
    _offset = 0

    def clone_state(self) -> MpsGenerator:
        """Return another generator in the same state."""
        return _with_state(self.get_state())

    def get_offset(self) -> int:
        """Return the offset set last, which has no effect: no Philox numbers are drawn."""
        return self._offset

    def set_offset(self, offset: int) -> MpsGenerator:
        """Keep the offset; the numbers stay those of the CPU's generator."""
        self._offset = operator.index(offset)
        return self

    def manual_seed(self, seed: int) -> _Base:
        """Reseed."""
        self._offset = 0
        return super().manual_seed(seed)

    def seed(self) -> int:
        """Reseed from entropy."""
        self._offset = 0
        return super().seed()


class _Shared(MpsGenerator):
    """The default generator of the simulated GPU when it shares the CPU's stream."""

    def manual_seed(self, seed: int) -> _Base:
        self._offset = 0
        torch.default_generator.manual_seed(seed)
        return self

    def seed(self) -> int:
        self._offset = 0
        return torch.default_generator.seed()

    def initial_seed(self) -> int:
        return torch.default_generator.initial_seed()

    def get_state(self) -> torch.Tensor:
        return torch.default_generator.get_state()

    def set_state(self, state: torch.Tensor) -> _Base:
        torch.default_generator.set_state(state)
        return self


def _with_state(state: torch.Tensor) -> MpsGenerator:
    generator = MpsGenerator()
    generator.set_state(state)
    return generator


class Randomness:
    """Chooses the generator of a random operator."""

    def __init__(self, mode: str) -> None:
        self.default: MpsGenerator = _Shared() if mode == "cpu" else MpsGenerator()
        if mode == "separate":
            self.default.manual_seed(torch.default_generator.initial_seed())
        self._separate = mode == "separate"

    def run(self, func: Any, on_mac: bool, given: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a random operator on the stream that it would use on a Mac.

        Args:
            func: the operator.
            on_mac: whether it runs on the simulated device.
            given: the generator that the caller named.
            args: its arguments.
            kwargs: its keyword arguments.

        Raises:
            RuntimeError: a generator of the other device was given; torch's own text.
        """
        if given is not None:
            _check(given, on_mac)
        if given is self.default:
            kwargs = {**kwargs, "generator": None}
            given = None
        if given is None and on_mac and self._separate:
            return draw(self.default, func, args, kwargs)
        return func(*args, **kwargs)


def _check(generator: _Base, on_mac: bool) -> None:
    expected = "mps" if on_mac else "cpu"
    found = generator.device.type
    if found != expected:
        raise RuntimeError(f"Expected a '{expected}' device type for generator but found '{found}'")


class _GeneratorMeta(type):
    def __call__(cls, device: Any = "cpu") -> Any:
        return MpsGenerator() if asks_mps(device_of(device)) else _Base(device)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Base)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, _Base)


def install(simulation: Simulation, patches: Patches) -> None:
    """Install the simulated generators."""
    replacement = _GeneratorMeta("Generator", (), {"__doc__": _Base.__doc__, "__module__": "torch"})
    default = simulation.randomness.default
    patches.set(torch, "Generator", replacement)
    patches.set(torch._C, "_mps_get_default_generator", lambda: default)
    patches.set(torch.mps, "_default_mps_generator", None)
