"""The table of corrections to the yaml (``data/mps_coverage.toml``), for one torch and macOS."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from mpskit.backends.versions import older

__all__ = ["Call", "Limit", "Table", "table_for"]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """An operator that a kernel calls inside.

    Attributes:
        inner: the called operator's name.
        argument: the argument that decides whether it is called, or "" for any.
        value: what the argument has to be for that.
        callers: the torch functions that come this way, or none for every one.
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
        rule: name of the rule in ``limits.RULES``.
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
        named: the operator that torch speaks of in place of one.
        narrowed: torch functions whose C++ takes float32 on MPS in place of float64.
    """

    status: Mapping[str, str]
    calls: Mapping[str, Call]
    limits: Mapping[str, tuple[Limit, ...]]
    named: Mapping[str, str]
    narrowed: frozenset[str]


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
        too_new = "since" in row and older(torch_version, row["since"])
        too_old = "until" in row and not older(torch_version, row["until"])
        mended = "macos_until" in row and not older(macos, row["macos_until"])
        if not (too_new or too_old or mended):
            yield row


@functools.cache
def _rows() -> dict[str, list[dict[str, Any]]]:
    text = resources.files("mpskit").joinpath("data", "mps_coverage.toml").read_text("utf-8")
    return tomllib.loads(text)
