"""Data loaders and files of weights in a rehearsal: no workers are started, no weights are read.

What a Mac would say of the workers is said.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import importlib.util
import linecache
import sys
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any

from mpskit.dispatch.patches import Patches
from mpskit.rehearsal.findings import Findings, Kind, spot_of
from mpskit.rehearsal.result import Severity

__all__ = ["install"]

_ALONE = {"num_workers": 0, "timeout": 0, "prefetch_factor": None, "persistent_workers": False}
_ALONE |= {"_DataLoader__multiprocessing_context": None}


def install(patches: Patches, findings: Findings) -> None:
    """Let every loader read in this process, and let files of weights be mapped, not read."""
    _install_loaders(patches, findings)
    if importlib.util.find_spec("safetensors") is not None:
        _map_weights(patches)


def _map_weights(patches: Patches) -> None:
    """Map safetensors files although the caller asks to read them, as transformers does for MPS.

    A library that was imported has the name already, and one that is imported in the rehearsal
    keeps the replacement, which then does what it replaces.
    """
    inside = [True]
    patches.on_exit(inside.clear)

    def mapping(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def safe_open(*args: Any, **kwargs: Any) -> Any:
            if inside:
                kwargs.pop("backend", None)
            return call(*args, **kwargs)

        return safe_open

    original = importlib.import_module("safetensors").safe_open
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("safe_open") is original:
            patches.derive(module, "safe_open", mapping)


def _install_loaders(patches: Patches, findings: Findings) -> None:
    loader: Any = importlib.import_module("torch.utils.data.dataloader").DataLoader
    begun: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def derived(call: Callable[..., Any]) -> Callable[..., Any]:
        def iterator(self: Any) -> Any:
            if self.pin_memory:
                text = "pin_memory=True does nothing for MPS, whose memory is the CPU's"
                _add(findings, Kind.PINNED, text, "pin_memory=False on a Mac", severity="note")
            if not self.num_workers:
                return call(self)
            begun[self] = begun.get(self, 0) + 1
            _check_workers(self, findings)
            if begun[self] == 2 and not self.persistent_workers:
                _add(
                    findings,
                    Kind.RESTARTS,
                    f"{self.num_workers} workers are started anew for each pass over the data",
                    "persistent_workers=True",
                )
            alone = copy.copy(self)
            alone.__dict__.update(_ALONE)
            return call(alone)

        return iterator

    patches.derive(loader, "_get_iterator", derived)


def _check_workers(loader: Any, findings: Findings) -> None:
    """Say what would fail as a Mac spawns the workers."""
    try:
        ForkingPickler.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))
    except Exception as error:  # noqa: BLE001 - any class may fail to be pickled in its own way
        text = f"a Mac spawns workers, and what they get cannot be pickled: {error}"
        _add(findings, Kind.WORKERS, text, "define it at the top of a module, or num_workers=0")
    if _unguarded(sys._getframe(1)):
        text = "a Mac spawns workers, which import the script anew: it has no __main__ guard"
        _add(findings, Kind.WORKERS, text, 'put the run under if __name__ == "__main__":')


def _add(
    findings: Findings, kind: Kind, text: str, fix: str, severity: Severity | None = None
) -> None:
    spot = spot_of(sys._getframe(1))
    findings.add(kind, "DataLoader", text, fix, severity=severity, spot=spot)


def _unguarded(frame: FrameType | None) -> bool:
    """Return whether the script is at a line outside of ``if __name__ == "__main__":``."""
    while frame is not None:
        names = frame.f_globals
        if frame.f_code.co_name == "<module>" and names.get("__name__") == "__main__":
            source = "".join(linecache.getlines(frame.f_code.co_filename))
            return bool(source) and not _guarded(source, frame.f_lineno)
        frame = frame.f_back
    return False


def _guarded(source: str, line: int) -> bool:
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return True
    return any(
        isinstance(one, ast.If)
        and "__name__" in ast.unparse(one.test)
        and one.lineno <= line <= (one.end_lineno or line)
        for one in statements
    )
