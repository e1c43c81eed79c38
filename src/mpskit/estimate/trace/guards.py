"""Patches active during a trace, on its thread only.

Host reads of data-less tensors raise, torch.compile is bypassed, device moves stay on the CPU, and
autocast for the target casts CPU tensors.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import checkpoint

from mpskit.backends.kinds import ACCELERATORS
from mpskit.backends.memory import mps_settings
from mpskit.dispatch.autocast import Autocast, AutocastMode
from mpskit.dispatch.dataless_tensors import is_dataless
from mpskit.dispatch.patches import Patches, in_place
from mpskit.estimate.trace.unknown_values import Reads

__all__ = ["described", "install", "search_on"]

_HERE = frozenset({"cpu", "meta"})
_CAST = ("cpu", "mps")  # every other device is traced as mps
_core: Any = torch._C


def install(patches: Patches, reads: Reads, device: str) -> None:
    """Install the guards of one trace.

    Args:
        patches: takes them away after.
        reads: makes the error for a value that is read.
        device: the target's name.
    """
    tensor = torch.Tensor
    for name in ("tolist", "numpy"):
        patches.bind(tensor, name, functools.partial(_reader, name, reads))
    patches.bind(tensor, "__repr__", described)
    patches.bind(tensor, "to", _staying)
    patches.bind(torch.nn.Module, "to", _staying)  # it asks torch for the accelerator of a number
    for name in ACCELERATORS:
        if hasattr(tensor, name):
            patches.bind(tensor, name, in_place(lambda self, *_, **__: self))
    patches.bind(torch, "compile", in_place(_not_compiled))
    _run_eagerly(patches)
    search_on(patches, reads)
    around = surrounding_autocast(device)
    _keep_autocast(patches)
    if device != "cpu":
        _Casting(patches, around)


def surrounding_autocast(device: str) -> torch.dtype | None:
    """Return the dtype of the autocast region around the call, None where there is none."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _run_eagerly(patches: Patches) -> None:
    """Let what was compiled before run as it was written."""
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is not None:
        patches.bind(dynamo, "_maybe_set_eval_frame", lambda call: lambda _: call(None))


def search_on(patches: Patches, reads: Reads) -> None:
    """Let the beam search of transformers go on to its last token.

    Scores that nobody computes decide whether an open beam could still become the best one.
    """
    mixin: Any = getattr(sys.modules.get("transformers.generation.utils"), "GenerationMixin", None)
    name = "_beam_search_has_unfinished_sequences"
    if not hasattr(mixin, name):
        return

    def going_on(call: Callable[..., Any]) -> Callable[..., Any]:
        def unfinished(improvable: torch.Tensor, *rest: Any, **named: Any) -> Any:
            if is_dataless(improvable):
                reads.notes["beam search was taken to go on to its last token"] = None
                improvable = torch.ones((), dtype=torch.bool)
            return call(improvable, *rest, **named)

        return unfinished

    patches.bind(mixin, name, going_on)


def _keep_autocast(patches: Patches) -> None:
    """Leave every region that an interrupt or the step left open.

    Casts of weights that autocast keeps are of the exchanged ones inside, of the real ones around.
    """
    states = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _CAST]
    cache, modes = torch.is_autocast_cache_enabled(), _core._len_torch_function_stack()
    nesting = min(torch.autocast_increment_nesting(), torch.autocast_decrement_nesting())

    torch.clear_autocast_cache()

    def restore() -> None:
        for device, enabled, dtype in states:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cache)
        torch.autocast_increment_nesting()
        while torch.autocast_decrement_nesting() > nesting:
            pass
        torch.clear_autocast_cache()
        while _core._len_torch_function_stack() > modes:
            _core._pop_torch_function_stack()

    patches.on_exit(restore)


def _reader(name: str, reads: Reads, call: Callable[..., Any]) -> Callable[..., Any]:
    def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.layout is torch.strided and is_dataless(self):
            raise reads.refusal(f"Tensor.{name}()", self.shape)
        return call(self, *args, **kwargs)

    return read


def described(call: Callable[..., str]) -> Callable[..., str]:
    """Return a ``repr`` that does not read what is not there: people print tensors."""

    def describe(self: torch.Tensor, **kwargs: Any) -> str:
        if self.layout is torch.strided and is_dataless(self):
            return f"tensor(..., size={tuple(self.shape)}, dtype={self.dtype})"
        return call(self, **kwargs)

    return describe


def _staying(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``to`` that takes every device of the target for the one that is here."""

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and _elsewhere(args[0]):
            args = ("cpu", *args[1:])
        if _elsewhere(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return call(self, *args, **kwargs)

    return to


def _elsewhere(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return True  # the index of an accelerator
    if isinstance(value, str):
        return value.partition(":")[0] not in _HERE
    return isinstance(value, torch.device) and value.type not in _HERE


def _not_compiled(model: Any = None, **_: Any) -> Any:
    return model if model is not None else lambda function: function


class _Casting:
    """Lets ``torch.autocast`` for an accelerator cast every tensor by the MPS lists.

    CUDA's lists differ from them in few operators (3-D convolutions run in half precision there);
    they are taken to be the same. One function mode is on for as long as any region is open.
    """

    def __init__(self, patches: Patches, around: torch.dtype | None) -> None:
        self._autocast = Autocast(lambda _: True)
        self._modes: list[Any] = []
        torch.set_autocast_enabled("cpu", False)  # a region of the CPU's leaves the target alone
        if around is not None:
            torch.set_autocast_enabled("mps", True)
            torch.set_autocast_dtype("mps", around)
            self._modes.append(AutocastMode(self._autocast))
            self._modes[0].__enter__()  # taken away with whatever else the step leaves open
        region: Any = torch.amp.autocast_mode.autocast
        patches.bind(region, "__init__", self._named)
        # Until 2.8 torch asks the Mac whether it is new enough for bfloat16; the target is.
        patches.set(mps_settings(), "is_macos_or_newer", lambda *_: True)
        patches.bind(region, "__enter__", self._entered)
        patches.bind(region, "__exit__", self._left)
        patches.bind(torch, "clear_autocast_cache", self._autocast.emptying)
        # A checkpoint restores autocast for the device of its arguments, which lie on the CPU here.
        patches.bind(checkpoint, "_infer_device_type", lambda _: lambda *_: "mps")

    def _named(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def init(region: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
            call(region, device_type if device_type in _HERE else "mps", *args, **kwargs)
            if device_type in _HERE:
                region._enabled = False  # it leaves the target's tensors alone

        return init

    def _entered(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def enter(region: Any) -> Any:
            found = call(region)
            if region.device == "mps":
                self._modes.append(AutocastMode(self._autocast))
                if len(self._modes) == 1:
                    self._modes[0].__enter__()
            return found

        return enter

    def _left(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def leave(region: Any, *error: Any) -> Any:
            if region.device == "mps":
                mode = self._modes.pop()
                if not self._modes:
                    mode.__exit__(*error)
            return call(region, *error)

        return leave
