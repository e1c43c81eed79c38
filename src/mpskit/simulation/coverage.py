"""Which operators MPS has: the installed torch's yaml, and a table of corrections to it."""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import sys
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from mpskit.backends.versions import has, within
from mpskit.simulation import argument_limits, messages
from mpskit.simulation.yaml_index import Index, Kind, installed_index

if TYPE_CHECKING:
    import torch
    from torch._ops import OpOverload

__all__ = [
    "Call",
    "Check",
    "Coverage",
    "Limit",
    "Status",
    "Table",
    "calling_function",
    "table_for",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """An operator that a kernel calls inside.

    Attributes:
        inner: the called operator's name.
        argument: the argument that decides whether it is called, or "" for any.
        value: what the argument has to be for that.
        callers: the torch functions that make the call; empty for all.
    """

    inner: str
    argument: str
    value: Any
    callers: frozenset[str]

    @property
    def always(self) -> bool:
        """Whether the call is made whatever the arguments and the caller."""
        return not self.argument and not self.callers


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """Arguments that an MPS kernel refuses.

    Attributes:
        rule: name of the rule in ``argument_limits.RULES``.
        argument: the argument that it looks at, where the rule does not say so itself.
        text: torch's words, where the rule does not choose them itself.
        error: name of the builtin exception.
    """

    rule: str
    argument: str
    text: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """The rows that apply, by operator (``"add.Tensor"``, ``"torchvision::nms"``).

    Attributes:
        named: operator -> the one that torch's messages name instead.
        narrowed: torch functions and autograd nodes whose C++ takes float32 on MPS, not float64.
    """

    status: Mapping[str, str]
    calls: Mapping[str, Call]
    limits: Mapping[str, tuple[Limit, ...]]
    named: Mapping[str, str]
    narrowed: frozenset[str]


# Operators with a dtype to compute in, and rows among those of ``narrowed``.
_CASTING = frozenset({"_to_copy", "linalg_vector_norm", "sum.dim_IntList"})


@functools.cache
def table_for(torch_version: str, macos: str) -> Table:
    """Return the corrections for one torch version on one macOS (``"15.6"``)."""
    rows = {key: list(_applying(key, torch_version, macos)) for key in _rows()}
    limits: dict[str, tuple[Limit, ...]] = {}
    for row in rows["limit"]:
        limit = Limit(row["rule"], row.get("argument", ""), row.get("text", ""), row["error"])
        limits |= {name: (*limits.get(name, ()), limit) for name in row["ops"]}
    return Table(
        status=MappingProxyType({n: row["status"] for row in rows["status"] for n in row["ops"]}),
        calls=MappingProxyType({row["op"]: _call(row) for row in rows["calls"]}),
        limits=MappingProxyType(limits),
        named=MappingProxyType(
            {n: row["named"] for row in rows["status"] if "named" in row for n in row["ops"]}
        ),
        narrowed=frozenset(name for row in rows["narrowed"] for name in row["callers"]),
    )


def _call(row: Mapping[str, Any]) -> Call:
    callers = frozenset(row.get("callers", ()))
    return Call(row["inner"], row.get("argument", ""), row.get("value"), callers)


def _applying(key: str, torch_version: str, macos: str) -> Iterator[Mapping[str, Any]]:
    for row in _rows()[key]:
        fits = within(torch_version, row.get("since"), row.get("until"))
        if fits and within(macos, None, row.get("macos_until")):
            yield row


@functools.cache
def _rows() -> dict[str, list[dict[str, Any]]]:
    text = resources.files("mpskit").joinpath("data", "mps_coverage.toml").read_text("utf-8")
    return tomllib.loads(text)


Check = Callable[[Sequence[Any], Mapping[str, Any]], None]

_COMPOSITE_KEYS = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


class Status(enum.Enum):
    """How an operator runs on MPS.

    Attributes:
        NATIVE: it has an MPS kernel of its own.
        COMPOSITE: its kernel is made of other operators.
        STANDIN: only the CPU runs it, in place of a kernel that a Mac has under another name.
        ALWAYS_CPU: torch itself runs it on the CPU and warns, whatever the variable says.
        MISSING: NotImplementedError, unless PYTORCH_ENABLE_MPS_FALLBACK is on.
    """

    NATIVE = "native"
    COMPOSITE = "composite"
    STANDIN = "standin"
    ALWAYS_CPU = "always_cpu"
    MISSING = "missing"


class Coverage:
    """The operators of one torch version on one macOS.

    Args:
        torch_version: the installed torch, whose yaml is read.
        macos: the simulated machine's macOS, as ``"15.6"``.
        fallback: whether PYTORCH_ENABLE_MPS_FALLBACK was on at entry: operators that a kernel calls
            are then never missing. The caller handles those that are.
        index: the yaml's operators; by default the installed torch's.
    """

    def __init__(
        self, torch_version: str, macos: str, *, fallback: bool = False, index: Index | None = None
    ) -> None:
        self.torch_version = torch_version
        self.fallback = fallback
        self._index = installed_index() if index is None else index
        self._table = table_for(torch_version, macos)
        self._status: dict[OpOverload, Status] = {}
        self._layouts: set[torch.layout] = set()

    def status(self, op: OpOverload) -> Status:
        """Return how the operator runs on MPS (cached by operator)."""
        found = self._status.get(op)
        if found is None:
            found = self._status[op] = self._look_up(op)
        return found

    def _look_up(self, op: OpOverload) -> Status:
        name = _short_name(op)
        corrected = self._table.status.get(name)
        kind = self._index.kinds.get(name)
        if kind is Kind.NATIVE or _registered_in_python(self._index.kernel(name)):
            return Status.NATIVE
        if corrected is not None:
            return Status(corrected)
        if kind is None:
            return Status.NATIVE if self._has_collectives(op) else _dispatcher_status(op)
        call = self._table.calls.get(name)
        if call is not None and call.always and self._meets_gap(call):
            return Status.MISSING
        return Status.MISSING if self._index.missing_name(name) else Status.COMPOSITE

    def check(self, op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise what MPS raises for these arguments of an operator that it does have.

        Raises:
            NotImplementedError, RuntimeError: with torch's text.
        """
        check = self.check_for(op)
        if check is not None:
            check(args, kwargs)

    def check_for(self, op: OpOverload) -> Check | None:
        """Return the check of one operator's arguments, or None where nothing can be wrong."""
        # A barrier's tensor is torch's own and on the CPU with gloo (ProcessGroup.hpp).
        if self._has_collectives(op) and "barrier" not in op._schema.name:
            return self._refuse_collective(op)
        name = _short_name(op)
        if name in _CASTING and self._table.narrowed:
            return self._narrow
        call = self._table.calls.get(name)
        rows = self._table.limits.get(name, ())
        open_gap = call is not None and not call.always and self._meets_gap(call)
        gap = call if open_gap and not self.fallback else None
        if gap is None and not rows:
            return None

        def check(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            arguments = argument_limits.bind(op, args, kwargs)
            self._raise_for_gap(gap, arguments)
            _raise_for_limits(rows, arguments)

        return check

    def _has_collectives(self, op: OpOverload) -> bool:
        """Return whether a c10d operator has an MPS kernel: since 2.11, one that only raises."""
        return op.namespace == "c10d" and has("mps.distributed_error", self.torch_version)

    def _refuse_collective(self, op: OpOverload) -> Check:
        def check(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
            text = messages.distributed_operator(_qualified(op), self.torch_version, _commit())
            raise NotImplementedError(text)

        return check

    def _narrow(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Choose float32 where C++ would avoid float64 on a Mac, unlike its caller."""
        dtype = kwargs.get("dtype")
        wide = dtype is not None and str(dtype) == "torch.float64"
        if wide and calling_function() in self._table.narrowed:
            import torch

            cast("dict[str, Any]", kwargs)["dtype"] = torch.float32

    def _meets_gap(self, call: Call) -> bool:
        return self._index.kinds.get(call.inner) is Kind.MISSING

    def _raise_for_gap(self, gap: Call | None, arguments: Mapping[str, Any]) -> None:
        if gap is None or (gap.argument and arguments[gap.argument] != gap.value):
            return
        if not gap.callers or calling_function() in gap.callers:
            raise self._missing(f"aten::{gap.inner}")

    def missing_error(self, op: OpOverload) -> NotImplementedError:
        """Return torch's error for an operator that MPS does not have."""
        return self._missing(self._full_name(op))

    def _missing(self, name: str) -> NotImplementedError:
        text = messages.missing_operator(name, self.torch_version, _commit())
        return NotImplementedError(text)

    def check_layout(self, layout: torch.layout, operator: str = "empty.memory_format") -> None:
        """Raise what a Mac raises for a sparse tensor where MPS has none (torch before 2.9).

        Args:
            layout: the tensor's; every one but ``torch.strided`` is looked up.
            operator: where torch fails; by default the allocation of a moved or empty tensor. No
                report shows the text for compressed layouts, which follows that of COO tensors.

        Raises:
            NotImplementedError: with the beginning of torch's text (pytorch#141320, #87886).
        """
        if layout not in self._layouts:
            import torch

            coo = layout is torch.sparse_coo
            backend = "SparseMPS" if coo else "SparseCsrMPS"
            if layout is not torch.strided and not self._index.has_layout(backend):
                raise NotImplementedError(messages.not_for_backend(f"aten::{operator}", backend))
            self._layouts.add(layout)

    def fallback_warning(self, op: OpOverload) -> str:
        """Return the text of the warning for the first operator that falls back to the CPU."""
        return messages.fallback(self._full_name(op))

    def _full_name(self, op: OpOverload) -> str:
        """Return the name that torch prints: the missing kernel's, not the caller's."""
        name = _short_name(op)
        call = self._table.calls.get(name)
        if call is not None and call.always:
            return f"aten::{call.inner}"
        missing = self._table.named.get(name) or self._index.missing_name(name) or name
        return missing if "::" in missing else f"aten::{missing}"


def _raise_for_limits(rows: Sequence[Limit], arguments: Mapping[str, Any]) -> None:
    for limit in rows:
        text = argument_limits.refusal(limit, arguments)
        if text is not None:
            raise getattr(builtins, limit.error)(text)


def calling_function() -> str:
    """Return the torch function that is being called, as the nearest function mode sees it.

    Composite kernels call one another in C++, where a dispatch mode sees only the last; the
    function mode's frame on the stack holds the first. In autograd's engine it is the node. An
    operator that a user's dispatch mode hands on is not who called it.
    """
    import torch

    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            node: Any = torch._C._current_autograd_node()
            return node.name() if node is not None else ""
        if frame.f_code.co_name == "__torch_function__" and "func" in frame.f_locals:
            func = frame.f_locals["func"]
            if not isinstance(func, torch._ops.OpOverload):
                return str(getattr(func, "__name__", ""))
        frame = frame.f_back
    return ""


def _short_name(op: OpOverload) -> str:
    """Return ``"add.Tensor"``, or ``"torchvision::nms"`` outside aten."""
    schema = op._schema
    name = schema.name.removeprefix("aten::")
    return f"{name}.{schema.overload_name}" if schema.overload_name else name


def _qualified(op: OpOverload) -> str:
    """Return the name with its namespace: ``"aten::add.Tensor"``."""
    name = _short_name(op)
    return name if "::" in name else f"aten::{name}"


def _registered_in_python(name: str) -> bool:
    """Return whether Python code gave an operator an MPS kernel.

    torch does that itself (linalg_lu_solve in torch/_refs/linalg), and so may a user's library;
    the dispatcher of a Linux build knows these, and no others.
    """
    import torch

    qualified = name if "::" in name else f"aten::{name}"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "MPS"))


def _dispatcher_status(op: OpOverload) -> Status:
    """Return the status of an operator outside the yaml (a custom one), by the dispatcher."""
    import torch

    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    name = _qualified(op)
    if any(has_kernel(name, key) for key in _COMPOSITE_KEYS) or not has_kernel(name, "CPU"):
        return Status.COMPOSITE
    return Status.MISSING


def _commit() -> str:
    import torch

    return str(torch.version.git_version)
