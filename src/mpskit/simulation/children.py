"""Carries a simulated Mac into child processes.

One variable carries the machine (``MPSKIT_SIMULATE``) and a folder goes to the front of
``PYTHONPATH``. Its ``sitecustomize`` waits for the import of torch, enters the same machine, and
runs the user's own ``sitecustomize``. So spawned and forkserver workers, ``subprocess``, torchrun
and pytest-xdist are all inside. A child with another environment, a Python started with ``-I``,
``-E`` or ``-S``, or one without mpskit is outside.

This file imports neither torch nor pydantic at load time, because every child loads it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpskit
from mpskit._base.arguments import shown
from mpskit.errors import MpskitError, SettingsError
from mpskit.settings import SIMULATE, simulated

if TYPE_CHECKING:
    from types import ModuleType

    from mpskit.dispatch.patches import Patches
    from mpskit.host import Machine

__all__ = ["TorchFinder", "at_startup", "carried", "environment", "looks_like"]

SITE = str(Path(__file__).parent / "_site")


def environment(
    machine: Machine,
    *,
    rng: str = "cpu",
    fallback: bool | None = None,
    early: bool = False,
    request: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the variables that put a child process on ``machine``.

    Args:
        machine: the machine.
        rng: as ``simulate`` takes it.
        fallback: as ``simulate`` takes it.
        early: simulate from the child's first line on, not only from its import of torch.
        request: what else the child is told; its ``room`` names a module whose ``enter`` gets it
            all in place of a plain simulation.
    """
    told = {
        "machine": machine.model_dump(mode="json", exclude_none=True),
        "rng": rng,
        "fallback": fallback,
        "early": early,
        **(request or {}),
    }
    folders = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    path = os.pathsep.join([SITE, *(folder for folder in folders if folder != SITE)])
    return {SIMULATE: json.dumps(told), "PYTHONPATH": path}


@contextlib.contextmanager
def carried(
    machine: Machine,
    *,
    rng: str = "cpu",
    fallback: bool | None = None,
    request: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Put children started inside the block on ``machine`` too; as ``environment`` says."""
    variables = environment(machine, rng=rng, fallback=fallback, request=request)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _stop_forkserver()
    try:
        yield
    finally:
        _put_back(os.environ, before)
        _stop_forkserver()


def _put_back(environ: MutableMapping[str, str], before: dict[str, str | None]) -> None:
    for name, text in before.items():
        if text is None:
            environ.pop(name, None)
        else:
            environ[name] = text


def _stop_forkserver() -> None:
    """Stop an idle forkserver, whose children would inherit the variables of its own start.

    One that still has children is left alone, because stopping it would wait for them.
    """
    module: Any = sys.modules.get("multiprocessing.forkserver")
    if module is not None and not multiprocessing.active_children():
        module._forkserver._stop()


class TorchFinder:
    """Finds torch once, and enters the simulation as soon as its module has run."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self._enter = enter

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return torch's spec with a loader that enters; None for every other module."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return self._entering(spec)
        return None

    def _entering(self, spec: ModuleSpec) -> ModuleSpec:
        loader: Any = spec.loader
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            original(module)
            self._enter()

        loader.exec_module = exec_module
        return spec


def at_startup() -> None:
    """Carry out the parent's request; our ``sitecustomize`` calls it in every child."""
    text = simulated()
    if text is None:
        return
    # mpskit is a pytest plugin, and pytest warns about plugins imported before it, because it can
    # no longer rewrite their assertions. This marker says that there is no need.
    mpskit.__doc__ = f"{mpskit.__doc__}\nPYTEST_DONT_REWRITE"
    with _refusing():
        request = _parsed(text)
        looks = looks_like(_machine(request)) if request.get("early") else None

    def enter() -> None:
        with _refusing():
            if looks is not None:
                looks.undo()
            _enter(request)

    # The script imports torch itself, because it may set variables first.
    sys.meta_path.insert(0, TorchFinder(enter))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """End the process if its machine cannot be entered: it must not run outside unnoticed."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - `site` would swallow it and run the script
        if not isinstance(error, MpskitError):
            traceback.print_exc()
        print(f"mpskit simulate: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)


def looks_like(machine: Machine) -> Patches:
    """Simulate the machine for code that asks before it imports torch, until this is undone."""
    from mpskit.dispatch.patches import Patches
    from mpskit.simulation import host_patch

    patches = Patches()
    host_patch.install(machine, lambda: 0, patches)
    return patches


def _enter(request: dict[str, Any]) -> None:
    """Enter the machine for the rest of this process."""
    if "room" in request:
        importlib.import_module(request["room"]).enter(request)
        return
    from mpskit.simulation import simulate

    rng, fallback = request.get("rng", "cpu"), request.get("fallback")
    mac = simulate(_machine(request), rng=rng, fallback=fallback)
    mac.__enter__()
    atexit.register(mac.__exit__, None, None, None)


def _machine(request: dict[str, Any]) -> Machine:
    from mpskit.host import Machine, find_machine

    given = request["machine"]
    return find_machine(given) if isinstance(given, str) else Machine(**given)


def _parsed(text: str) -> dict[str, Any]:
    """Return the request: what `environment` wrote, or just a machine's name.

    Raises:
        SettingsError: it is neither.
    """
    if not text.lstrip().startswith("{"):
        return {"machine": text}
    try:
        request = json.loads(text)
    except ValueError:
        request = None
    if not isinstance(request, dict) or "machine" not in request:
        raise SettingsError(
            f"{SIMULATE}={shown(text)} is not understood: use a machine's name", given=text
        )
    return request
