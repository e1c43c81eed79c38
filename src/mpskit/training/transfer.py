"""Moving a batch to a device: :func:`to_device`.

Two facts about MPS make this more than a loop over ``.to``. It has no float64, so float64 data
(NumPy's default) raises; here it becomes float32, with one warning. And a ``non_blocking`` copy
from or to MPS silently corrupts its data when the source is freed or reused before the copy is done
(pytorch#139550, pytorch#189690), so none is made.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections import UserDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from mpskit._base.arguments import wrong_type
from mpskit.backends.kinds import Kind, kind_of
from mpskit.backends.memory import as_device, backend
from mpskit.errors import ArgumentError, DeviceUnavailableError, PrecisionWarning

if TYPE_CHECKING:
    import torch

__all__ = ["copy_is_asynchronous", "to_device"]

_T = TypeVar("_T")


def to_device(batch: _T, device: str | torch.device, *, non_blocking: bool | None = None) -> _T:
    """Return ``batch`` with every tensor in it on ``device``; the input is left as it was.

    Lists, tuples, named tuples, mappings, dataclasses (frozen ones too), ``UserDict`` and its kin
    (a Hugging Face ``BatchEncoding``), ``PackedSequence``, and anything else with a ``.to`` are
    traversed, however nested; each keeps its type. A container with nothing to move is returned
    itself, not a copy. A tensor that occurs twice is moved once. Everything else (str, numbers,
    NumPy arrays, None) is passed through. A module is moved as a whole by its own ``.to``, which by
    torch's convention works in place.

    On MPS float64 becomes float32 and complex128 becomes complex64.

    Args:
        batch: what a ``DataLoader`` yields.
        device: the target.
        non_blocking: copy asynchronously. None does so where it is safe and useful: to CUDA or XPU
            from pinned memory. True is honoured only where it is safe: never from or to MPS, never
            from unpinned memory, never back to the CPU.

    Raises:
        ArgumentTypeError: ``device`` is neither a device nor a string, or ``non_blocking`` neither
            a bool nor None.
        ArgumentError: torch knows no such device, the batch contains itself, or a module in it
            has float64 parameters and goes to MPS.
        DeviceUnavailableError: the machine has no such device.

    Warns:
        PrecisionWarning: once per call, if a dtype was narrowed for MPS.
    """
    if non_blocking is not None and not isinstance(non_blocking, bool):
        raise wrong_type("non_blocking", "True, False or None", non_blocking)
    move = _Move(as_device(device), non_blocking)
    try:
        moved: _T = move(batch)
    except RecursionError:
        raise ArgumentError(
            "the batch contains itself, or is nested too deeply", given=batch
        ) from None
    except (RuntimeError, AssertionError) as error:
        if backend(move.target).is_available():
            raise
        raise DeviceUnavailableError(
            f"{move.target} cannot be used here ({error}): get_optimal_device() chooses one that "
            "can, and `mpskit doctor` says why this one cannot",
            given=device,
        ) from error
    if move.narrowed:
        _warn(move.narrowed)
    return moved


def _warn(narrowed: Mapping[str, int]) -> None:
    counts = " and ".join(f"{count} {change}" for change, count in narrowed.items())
    warnings.warn(
        f"{counts}: MPS has no 64-bit floating point. Create the data as float32 to save the "
        "conversion on every step.",
        PrecisionWarning,
        stacklevel=3,
    )


def copy_is_asynchronous(source: str, target: str, *, pinned: bool, asked: bool | None) -> bool:
    """Return whether a copy between two device types may be ``non_blocking``.

    Args:
        source: device type that the tensor is on.
        target: device type that it goes to.
        pinned: whether the tensor is in page-locked memory.
        asked: the caller's ``non_blocking``.
    """
    kinds = kind_of(source), kind_of(target)
    if asked is False or not all(kind.non_blocking for kind in kinds) or not kinds[1].caches:
        return False
    if source == "cpu" and kinds[1].pins:
        # From pageable memory the copy blocks anyway, after an extra check.
        return pinned
    return bool(asked)


@dataclass(slots=True)
class _Move:
    """The state of one call: what has been moved, and what was narrowed."""

    target: torch.device
    asked: bool | None
    narrowed: dict[str, int] = field(default_factory=dict)
    # The source is kept beside its copy so that its id is not reused meanwhile.
    done: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return kind_of(self.target)

    def __call__(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            return self._once(value, self._tensor)
        if isinstance(value, str | bytes | int | float | type(None) | type):
            return value
        if isinstance(value, torch.nn.utils.rnn.PackedSequence):
            return self._packed(value)
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        return self._container(value)

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict | UserDict):
            return self._mapping(value)
        if isinstance(value, MappingProxyType):
            moved = self._mapping(dict(value))
            return value if _same(moved.values(), value.values()) else MappingProxyType(moved)
        if isinstance(value, list | deque):
            return self._list(value)
        if isinstance(value, tuple | set | frozenset):
            return self._rebuilt(value)
        if dataclasses.is_dataclass(value):
            return self._fields(value)
        return self._once(value, self._by_own_to) if callable(getattr(value, "to", None)) else value

    def _once(self, value: Any, move: Callable[[Any], Any]) -> Any:
        if id(value) not in self.done:
            self.done[id(value)] = (value, move(value))
        return self.done[id(value)][1]

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        narrowed: torch.Tensor = self._narrow(tensor, tensor.dtype)
        return narrowed.to(self.target, non_blocking=self._asynchronous(tensor))

    def _packed(self, packed: Any) -> Any:
        """Use the type's own ``to``, which leaves ``batch_sizes`` on the CPU as torch requires."""
        narrowed = self._narrow(packed, packed.data.dtype)
        return narrowed.to(self.target, non_blocking=self._asynchronous(packed.data))

    def _asynchronous(self, tensor: torch.Tensor) -> bool:
        """Check for pinned memory only where it matters, because the check may call the driver."""
        source, target = tensor.device.type, self.target.type
        pinned = source == "cpu" and kind_of(target).pins and tensor.is_pinned()
        return copy_is_asynchronous(source, target, pinned=pinned, asked=self.asked)

    def _narrow(self, value: Any, dtype: torch.dtype) -> Any:
        """Return a tensor or packed sequence in a dtype that MPS has; count it if that changed."""
        narrower = None if self.kind.float64 else _narrower(dtype)
        if narrower is None:
            return value
        change = f"{_name(dtype)} tensor(s) became {_name(narrower)}"
        self.narrowed[change] = self.narrowed.get(change, 0) + 1
        return value.to(narrower)

    def _module(self, module: torch.nn.Module) -> torch.nn.Module:
        tensors = [*module.parameters(), *module.buffers()]
        if not self.kind.float64 and any(_narrower(tensor.dtype) for tensor in tensors):
            raise ArgumentError(
                "a module in the batch has 64-bit parameters, which MPS cannot hold: call "
                "module.float() on it first",
                given=module,
            )
        return module.to(self.target)

    def _mapping(self, mapping: Any) -> Any:
        moved = {key: self(value) for key, value in mapping.items()}
        if _same(moved.values(), mapping.values()):
            return mapping
        fresh = copy.copy(mapping)  # keeps the type and its state, such as a default factory
        for key, value in moved.items():
            fresh[key] = value
        return fresh

    def _list(self, values: Any) -> Any:
        moved = [self(value) for value in values]
        if _same(moved, values):
            return values
        fresh = copy.copy(values)
        for index, value in enumerate(moved):
            fresh[index] = value
        return fresh

    def _rebuilt(self, values: Any) -> Any:
        """Build a new tuple or set, which cannot be changed in place, of the same type."""
        moved = [self(value) for value in values]
        if _same(moved, values):
            return values
        return values._make(moved) if hasattr(values, "_make") else type(values)(moved)

    def _fields(self, value: Any) -> Any:
        """Set the fields on a fresh copy, past a frozen class's guard."""
        names = [each.name for each in dataclasses.fields(value) if hasattr(value, each.name)]
        old = [getattr(value, name) for name in names]
        moved = [self(item) for item in old]
        if _same(moved, old):
            return value
        fresh = copy.copy(value)
        for name, item in zip(names, moved, strict=True):
            object.__setattr__(fresh, name, item)
        return fresh

    def _by_own_to(self, value: Any) -> Any:
        """Call the object's ``.to`` on a shallow copy, because many work in place."""
        try:
            value = copy.copy(value)
        except (TypeError, copy.Error):
            pass  # what cannot be copied is moved as it is
        if self.asked and self.kind.non_blocking and _takes_non_blocking(value.to):
            return value.to(self.target, non_blocking=True)
        return value.to(self.target)


def _same(left: Any, right: Any) -> bool:
    return all(a is b for a, b in zip(left, right, strict=True))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _narrower(dtype: torch.dtype) -> torch.dtype | None:
    """Return the dtype that MPS has instead of this one; None if it needs no change."""
    import torch

    return {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(dtype)


def _takes_non_blocking(to: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(to).parameters
    except (TypeError, ValueError):
        return False
    return "non_blocking" in parameters
