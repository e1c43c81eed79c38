"""Which operators the installed torch has an MPS kernel for, read from its own yaml.

``torchgen/packaged/ATen/native/native_functions.yaml`` ships inside every torch wheel; the Linux
and the macOS file of one version are the same, byte for byte. It is 600 kB, and a yaml parser is
neither a dependency of mpskit nor quick, so a line reader takes the four keys that matter:
``func``, ``structured_delegate``, ``dispatch`` and ``autogen``.

What the yaml does not know (operators registered in C++, kernels that always run on the CPU,
limits that depend on arguments) stands in ``data/mps_coverage.toml``.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "Kind", "installed_index", "kind_of", "parse"]

_FUNC = re.compile(r"([\w.]+)\(")
_COMPOSITE = ("CompositeImplicit", "CompositeExplicit")


class Kind(enum.Enum):
    """What the yaml says about one operator on MPS."""

    NATIVE = "native"
    EXPLICIT = "explicit"
    IMPLICIT = "implicit"
    MISSING = "missing"


class Entry(NamedTuple):
    """One ``- func:`` block.

    Attributes:
        name: operator with overload, as ``"add.Tensor"``.
        delegate: the structured operator that its kernels come from, or "".
        keys: dispatch key -> kernel's name.
        autogen: names of the operators that torchgen derives from this one.
    """

    name: str
    delegate: str
    keys: dict[str, str]
    autogen: tuple[str, ...]


def parse(lines: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of a native_functions.yaml, by name; unknown keys are passed over."""
    entries: dict[str, Entry] = {}
    for block in _blocks(lines):
        entry = _entry(block)
        if entry is not None:
            entries[entry.name] = entry
    return entries


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        if line.startswith("- func:"):
            if block:
                yield block
            block = [line]
        elif block and line.startswith("  "):
            block.append(line)
    if block:
        yield block


def _entry(block: list[str]) -> Entry | None:
    found = _FUNC.search(block[0])
    if found is None:
        return None
    delegate, autogen, keys = "", "", {}
    for line in block[1:]:
        key, _, value = line.partition(":")
        if line.startswith("    "):
            keys |= _dispatch(key, value)
        elif key == "  structured_delegate":
            delegate = value.strip()
        elif key == "  autogen":
            autogen = value
    return Entry(
        found[1], delegate, keys, tuple(name.strip() for name in autogen.split(",") if name)
    )


def _dispatch(names: str, kernel: str) -> dict[str, str]:
    value = kernel.partition("#")[0].strip()
    if names.lstrip().startswith("#") or not value:
        return {}
    return {name.strip(): value for name in names.split(",")}


def kind_of(entry: Entry, entries: dict[str, Entry]) -> Kind:
    """Return how MPS comes by an operator: own kernel, composite, or not at all."""
    keys = entries[entry.delegate].keys if entry.delegate in entries else entry.keys
    if "MPS" in keys:
        return Kind.NATIVE
    composite = [name for name in keys if name.startswith(_COMPOSITE)]
    if any(name.startswith("CompositeExplicit") for name in composite):
        return Kind.EXPLICIT
    return Kind.IMPLICIT if composite or not keys else Kind.MISSING


def index(lines: Iterable[str]) -> dict[str, Kind]:
    """Return every operator of a yaml with its kind; derived ones take their base's.

    torchgen gives a derived operator (``autogen``) a kernel that calls its base, so it has what
    the base has, save that it is itself explicit where the base is native.
    """
    entries = parse(lines)
    kinds = {name: kind_of(entry, entries) for name, entry in entries.items()}
    for entry in entries.values():
        base = kinds[entry.name]
        derived = Kind.MISSING if base is Kind.MISSING else Kind.EXPLICIT
        kinds |= {name: derived for name in entry.autogen if name not in entries}
    return kinds


@functools.cache
def installed_index() -> dict[str, Kind]:
    """Return the installed torch's operators with their kinds; empty where it ships no yaml."""
    path = _yaml_path()
    if path is None:
        return {}
    with path.open(encoding="utf-8") as stream:
        return index(stream)


def _yaml_path() -> Path | None:
    spec = importlib.util.find_spec("torchgen")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "packaged" / "ATen" / "native" / "native_functions.yaml"
        if path.is_file():
            return path
    return None
