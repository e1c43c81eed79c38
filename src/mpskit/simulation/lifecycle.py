"""Builds, enters and leaves a simulated machine."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch.utils import _device

from mpskit._base.arguments import shown
from mpskit._base.signals import deferred_signals
from mpskit.allocator.watermarks import FALLBACK, int_problem, read_int
from mpskit.backends.versions import has, minimum_macos, older
from mpskit.dispatch.autocast import Autocast
from mpskit.dispatch.intercept import OutsideThread
from mpskit.dispatch.patches import Patches
from mpskit.errors import ArgumentTypeError, SettingsError, SimulationError
from mpskit.host import Host, HostKind, Machine
from mpskit.memory.working_set import recommended_bytes
from mpskit.simulation import (
    autograd,
    children,
    compiling,
    events,
    host_patch,
    library_caches,
    loader,
    operators,
    rng,
    storages,
    tensor_patches,
    torch_c,
    torch_function_checks,
)
from mpskit.simulation.core import RngMode, Simulation
from mpskit.simulation.coverage import Coverage
from mpskit.simulation.memory import Memory
from mpskit.simulation.operators import modes
from mpskit.simulation.rng import Randomness
from mpskit.simulation.rules import Rules
from mpskit.simulation.tags import Tags

__all__ = ["SimulatedMac", "active", "check_plain"]


_P = ParamSpec("_P")
_R = TypeVar("_R")

_lock = threading.Lock()
_active: SimulatedMac | None = None


def active() -> SimulatedMac | None:
    """Return the simulated Mac that this process is inside of, or None."""
    return _active


class SimulatedMac:
    """A simulated Mac, as context manager and as decorator; ``simulate`` makes it.

    Attributes:
        machine: the machine that is simulated.
        device: ``torch.device("mps")``.
    """

    def __init__(self, machine: Machine, *, rng: RngMode, fallback: bool | None) -> None:
        self.machine = machine
        self.device = torch.device("mps")
        self._rng: RngMode = rng
        self._fallback = fallback
        self._simulation: Simulation | None = None
        self._stack = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"<simulated Mac: {self.machine}>"

    def __enter__(self) -> Self:
        try:
            with deferred_signals():
                self._switch_on()
            return self
        except BaseException:  # perhaps a deferred Ctrl-C, after which no `__exit__` is called
            self._switch_off()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            was_on = self._switch_off()
        except BaseException:  # perhaps Ctrl-C before it was deferred
            self._switch_off()
            raise
        if not was_on:
            raise SimulationError("this simulated Mac was not entered")

    def _switch_on(self) -> None:
        global _active
        with _lock:
            if _active is not None:
                raise SimulationError(
                    f"already inside a simulated Mac ({_active.machine}): leave it first",
                    given=self.machine,
                )
            self._simulation = self._built()
            self._stack = _entered(self._simulation, self._carried())
            _active = self

    def _switch_off(self) -> bool:
        """Leave the machine if it is the active one, and return whether it was."""
        global _active
        with deferred_signals(), _lock:
            was_on = _active is self
            if was_on:
                _active = None
                self._stack.close()
            return was_on

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return ``function`` running on a fresh machine of this kind at each call.

        Raises:
            ArgumentTypeError: it is not a plain function (a coroutine's body would run outside).
        """
        check_plain(function, "simulate")

        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with SimulatedMac(self.machine, rng=self._rng, fallback=self._fallback):
                return function(*args, **kwargs)

        return run

    def _built(self, memory: type[Memory] = Memory) -> Simulation:
        """Return a simulation of the machine that is not switched on yet."""
        return _build(self.machine, memory, rng=self._rng, fallback=self._fallback)

    def _carried(self) -> AbstractContextManager[None]:
        return children.carried(self.machine, rng=self._rng, fallback=self._fallback)

    @property
    def host(self) -> Host:
        """What mpskit says of this machine."""
        return Host.from_readings(self.machine.readings())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of live tensors, each rounded as Metal rounds it."""
        model = self._entered.memory.peek()
        return 0 if model is None else model.live_bytes

    @property
    def driver_bytes(self) -> int:
        """Bytes that the allocator holds from Metal: whole heaps."""
        model = self._entered.memory.peek()
        return 0 if model is None else model.driver_bytes

    @property
    def peak_allocated_bytes(self) -> int:
        """The largest ``allocated_bytes`` since entry or ``reset_peaks()``."""
        model = self._entered.memory.peek()
        return 0 if model is None else model.peak_live_bytes

    @property
    def peak_driver_bytes(self) -> int:
        """The largest ``driver_bytes`` since entry or ``reset_peaks()``."""
        model = self._entered.memory.peek()
        return 0 if model is None else model.peak_driver_bytes

    def reset_peaks(self) -> None:
        """Reset both peaks to what is held now."""
        model = self._entered.memory.peek()
        if model is not None:
            model.reset_peaks()

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Operators that ran on the CPU instead, in order, each once: ``aten::mode``."""
        return tuple(self._entered.rules.fallbacks)

    @property
    def _entered(self) -> Simulation:
        if self._simulation is None:
            raise SimulationError("enter the simulated Mac first: with simulate(...) as mac")
        return self._simulation


def check_plain(function: Any, decorator: str) -> None:
    """Check that a decorator gets a function whose body runs when it is called.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not callable(function) or _is_deferred(function):
        raise ArgumentTypeError(
            f"{decorator} decorates plain functions; use `with` inside {shown(function)}",
            given=function,
        )


def _is_deferred(function: Callable[..., Any]) -> bool:
    return (
        inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
        or isinstance(function, type)
    )


def _entered(simulation: Simulation, carried: AbstractContextManager[None]) -> contextlib.ExitStack:
    """Switch everything on; closing the result switches it off."""
    patches = Patches()
    with contextlib.ExitStack() as stack:
        stack.callback(simulation.tags.clear)
        stack.callback(patches.undo)
        stack.enter_context(carried)
        _install(simulation, patches)
        stack.enter_context(modes(simulation))
        stack.callback(_close, simulation)
        return stack.pop_all()


def _close(simulation: Simulation) -> None:
    simulation.closed = True


def _install(simulation: Simulation, patches: Patches) -> None:
    _install_machine(simulation, patches)
    patches.on_exit(_default_device_restorer())
    tensor_patches.install(simulation, patches)
    operators.install(simulation, patches)
    storages.install(simulation, patches)
    torch_c.install(simulation, patches)
    events.install(simulation, patches)
    rng.install(simulation, patches)
    autograd.install(simulation, patches)
    clear = simulation.autocast.emptying(torch.clear_autocast_cache)
    patches.set(torch, "clear_autocast_cache", clear)
    loader.install(simulation, patches)
    compiling.install(patches)
    _install_threads(simulation, patches)
    torch_function_checks.install(patches)


def _default_device_restorer() -> Callable[[], None]:
    """Return a callback that resets a default device of ``mps``, which would break factories."""
    before = _device.CURRENT_DEVICE

    def restore() -> None:
        current = _device.CURRENT_DEVICE
        if current is not before and current is not None and current.type == "mps":
            torch.set_default_device(before)

    return restore


def _install_machine(simulation: Simulation, patches: Patches) -> None:
    """Replace the machine's readings, and clear caches about the previous one."""
    memory = simulation.memory

    def driver_bytes() -> int:
        model = memory.peek()
        return 0 if model is None else model.driver_bytes

    library_caches.install(patches)
    host_patch.install(simulation.machine, driver_bytes, patches)


def _install_threads(simulation: Simulation, patches: Patches) -> None:
    """Give every new thread its own modes, whatever its class does in ``run``."""
    original: Any = vars(threading.Thread)["_bootstrap_inner"]

    def _bootstrap_inner(self: threading.Thread) -> None:
        with contextlib.nullcontext() if isinstance(self, OutsideThread) else modes(simulation):
            original(self)

    patches.set(threading.Thread, "_bootstrap_inner", _bootstrap_inner)


def _build(
    machine: Machine, kind: type[Memory], *, rng: RngMode, fallback: bool | None
) -> Simulation:
    """Return a simulation of ``machine``, with memory of a kind, that is not switched on yet.

    Raises:
        SettingsError: PYTORCH_ENABLE_MPS_FALLBACK is not a number; a Mac's torch does not even
            import then.
    """
    version = str(torch.__version__)
    fallback = reads_fallback(os.environ) if fallback is None else fallback
    coverage = Coverage(version, machine.macos, fallback=fallback)
    memory = _memory(machine, version, kind)
    tags = Tags(memory)
    return Simulation(
        machine=machine,
        torch_version=version,
        usable=_usable(machine, version),
        pins=has("mps.pinned_cpu_tensors", version),
        memory=memory,
        tags=tags,
        rules=Rules(coverage, version, machine.macos, fallback=fallback),
        randomness=Randomness(rng),
        autocast=Autocast(tags.has),
    )


def reads_fallback(environ: Mapping[str, str]) -> bool:
    """Return whether missing operators fall back; the variable is parsed as by torch (``stoi``).

    Raises:
        SettingsError: it does not begin with an int, so a Mac's torch would not import.
    """
    text = environ.get(FALLBACK, "0")
    if (problem := int_problem(text)) is not None:
        raise SettingsError(f"{FALLBACK}={shown(text)} {problem}: use 1 or 0", given=text)
    return bool(read_int(text))


def _usable(machine: Machine, torch_version: str) -> bool:
    silicon = machine.kind in (HostKind.APPLE_SILICON, HostKind.MAC_VM)
    return silicon and not older(machine.macos, minimum_macos(torch_version))


def _memory(machine: Machine, torch_version: str, kind: type[Memory]) -> Memory:
    size = recommended_bytes(machine.ram_bytes, machine.macos)
    refusal = None
    if not _usable(machine, torch_version):
        refusal = (
            f"The MPS backend is supported on MacOS {minimum_macos(torch_version)}+."
            "Current OS version can be queried using `sw_vers`"
        )
    return kind(
        torch_version,
        recommended_bytes=size.recommended_bytes,
        max_buffer_bytes=size.max_buffer_bytes,
        broken=machine.kind is HostKind.MAC_VM,
        refusal=refusal,
    )
