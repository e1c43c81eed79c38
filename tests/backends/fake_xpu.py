"""A machine with an Intel GPU, as far as mpskit can tell: ``torch.xpu`` made of figures.

It stands in for what torch says of the backend; the numbers are computed by the CPU. To look at
such a machine's report::

    python tests/backends/fake_xpu.py doctor
"""

from __future__ import annotations

import contextlib
import sys
import types
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from mpskit.backends import facts as facts_of_torch
from mpskit.device import forget_decisions

GIB = 2**30
ARC = "Intel(R) Arc(TM) A770 Graphics"
_REAL = getattr(torch, "xpu", None)  # not in torch 2.2
_STREAM = SimpleNamespace(is_capturing=lambda: False)
NO_DRIVER = "Failed to initialize XPU devices. The driver may not be installed, or incompatible."


class FakeXpu(types.ModuleType):
    """Answers as ``torch.xpu`` does, and counts what it is told to do."""

    def __init__(self, *, count=1, total=16 * GIB, integrated=False, driver=True, bfloat16=True):
        super().__init__("torch.xpu")
        self.count, self.total, self.driver = count, total, driver
        self.properties = SimpleNamespace(
            name=ARC, total_memory=total, has_fp64=0, is_integrated_gpu=integrated,
            has_bfloat16_conversions=bfloat16,
        )  # fmt: skip
        self.in_use = self.warned = False
        self.allocated = self.reserved = self.peak = self.cleared = 0
        self.fraction = 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(_REAL, name)

    def _is_compiled(self) -> bool:
        # torch._dynamo imports the real bindings where this is true.
        return False

    def device_count(self) -> int:
        if not self.driver:
            if not self.warned:
                warnings.warn(NO_DRIVER, UserWarning, stacklevel=2)
            self.warned = True
            return 0
        return self.count

    def is_available(self) -> bool:
        return self.driver and self.count > 0

    def is_initialized(self) -> bool:
        return self.in_use

    def init(self) -> None:
        self.in_use = True

    def hold(self, size: int) -> None:
        """Act as if tensors of so many bytes were there."""
        self.init()
        self.allocated = size
        self.peak = max(self.peak, size)
        self.reserved = max(self.reserved, size)

    def memory_allocated(self, device: Any = None) -> int:
        return self.allocated

    def memory_reserved(self, device: Any = None) -> int:
        return self.reserved

    def max_memory_allocated(self, device: Any = None) -> int:
        return self.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        self.peak = self.allocated

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        self.init()
        return self.total - self.reserved, self.total

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        self.init()
        return self.properties

    def get_device_capability(self, device: Any = None) -> dict[str, Any]:
        return vars(self.get_device_properties(device))

    def get_device_name(self, device: Any = None) -> str:
        return str(self.get_device_properties(device).name)

    def get_per_process_memory_fraction(self, device: Any = None) -> float:
        return self.fraction

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        self.init()
        self.fraction = fraction

    def empty_cache(self) -> None:
        self.cleared += self.in_use
        self.reserved = self.allocated

    def synchronize(self, device: Any = None) -> None:
        pass


class _OnTheCpu(TorchFunctionMode):
    """Lets the CPU do what is asked of ``xpu``."""

    def __init__(self, fake: FakeXpu) -> None:
        super().__init__()
        self._fake = fake

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(self._cpu_for(value) for value in args)
        kwargs = {name: self._cpu_for(value) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def _cpu_for(self, value: Any) -> Any:
        if isinstance(value, torch.device | str) and str(value).partition(":")[0] == "xpu":
            self._fake.init()
            return torch.device("cpu")
        return value


@contextlib.contextmanager
def stand_in(*, version: str | None = "20250201", **facts: Any) -> Iterator[FakeXpu]:
    """Make this process's torch one that was built for XPU, on a machine as the facts say."""
    fake = FakeXpu(**facts)
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch, "xpu", fake),
            (torch._C, "_has_xpu", True),
            (torch._C, "_accelerator_getAccelerator", lambda: torch.device("xpu")),
            (torch._C, "_accelerator_getDeviceIndex", lambda: 0),
            (torch._C, "_accelerator_getStream", lambda *_: _STREAM),
            (torch.version, "xpu", version),
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        stack.enter_context(mock.patch.object(facts_of_torch, "_troubles", {}))
        stack.enter_context(_OnTheCpu(fake))
        forget_decisions()
        stack.callback(forget_decisions)
        yield fake


if __name__ == "__main__":
    from mpskit.cli.main import main

    with stand_in():
        sys.exit(main(sys.argv[1:]))
