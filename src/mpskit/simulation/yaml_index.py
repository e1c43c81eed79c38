"""The operators for which the installed torch has an MPS kernel, read from its own yaml.

``torchgen/packaged/ATen/native/native_functions.yaml`` ships inside every torch wheel; the Linux
and the macOS file of one version are the same, byte for byte. It is 600 kB, and a yaml parser is
neither a dependency of mpskit nor quick, so a line reader takes the four keys that matter:
``func``, ``structured_delegate``, ``dispatch`` and ``autogen``.

What the yaml does not know (operators registered in C++, kernels that always run on the CPU,
limits that depend on arguments) is in ``data/mps_coverage.toml``.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "Index", "Kind", "installed_index", "kind_of", "parse"]

_FUNC = re.compile(r"([\w.]+)\(")
_SPARSE = frozenset({"SparseMPS", "SparseCsrMPS"})


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
    """Return the entries of a native_functions.yaml, by name; unknown keys are skipped."""
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
    values: dict[str, str] = {}
    keys: dict[str, str] = {}
    section = ""
    for line in block[1:]:
        key, _, value = line.partition(":")
        if line.startswith("    "):
            keys |= _dispatch(key, value) if section == "dispatch" else {}
        else:
            section = key.strip()
            values[section] = value.strip()
    autogen = values.get("autogen", "").split(",")
    names = tuple(name.strip() for name in autogen if name.strip())
    return Entry(found[1], values.get("structured_delegate", ""), keys, names)


def _dispatch(names: str, kernel: str) -> dict[str, str]:
    value = kernel.partition("#")[0].strip()
    if names.lstrip().startswith("#") or not value:
        return {}
    return {name.strip(): value for name in names.split(",")}


def kind_of(entry: Entry, entries: Mapping[str, Entry]) -> Kind:
    """Return how MPS runs an operator: by its own kernel, as a composite, or not at all."""
    keys = entries[entry.delegate].keys if entry.delegate in entries else entry.keys
    if "MPS" in keys:
        return Kind.NATIVE
    own = {**keys, **entry.keys}
    if any(name.startswith("CompositeExplicit") for name in own):
        return Kind.EXPLICIT
    if not keys or any(name.startswith("CompositeImplicit") for name in own):
        return Kind.IMPLICIT
    # An operator of sparse tensors only, such as _coalesce, has no kernel for dense ones anywhere.
    return Kind.NATIVE if "CPU" not in keys and _SPARSE.intersection(keys) else Kind.MISSING


class Index:
    """Every operator of one yaml with its kind and its final kernel."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.kinds = {name: kind_of(entry, entries) for name, entry in entries.items()}
        self._entries = entries
        self._families = _families(entries)
        for entry in entries.values():
            # torchgen gives a derived operator (``autogen``) a kernel that calls its base.
            derived = self.kinds[entry.name]
            derived = Kind.MISSING if derived is Kind.MISSING else Kind.EXPLICIT
            self.kinds |= {name: derived for name in entry.autogen if name not in entries}

    def has_layout(self, key: str) -> bool:
        """Return whether any operator has a kernel for a layout's key, as ``"SparseMPS"``."""
        return not self._entries or any(key in entry.keys for entry in self._entries.values())

    def kernel(self, name: str) -> str:
        """Return the operator that holds an operator's kernels: a structured one's ``out``."""
        entry = self._entries.get(name)
        return entry.delegate if entry is not None and entry.delegate else name

    def missing_name(self, name: str) -> str | None:
        """Return the operator that a call fails in for want of an MPS kernel, or None.

        That is the ``out`` of a structured operator, and the relation that a CompositeExplicit
        kernel calls: ``frexp`` allocates and calls ``frexp.Tensor_out``, ``put`` clones and calls
        ``put_``. Where the whole family has no MPS kernel, the call ends in one that is missing.
        """
        if self.kinds.get(name) is Kind.MISSING:
            return self.kernel(name)
        entry = self._entries.get(name)
        if entry is None or entry.delegate or "CompositeExplicitAutograd" not in entry.keys:
            return None
        family = self._families[_base(name)]
        if any(self.kinds[relation] is Kind.NATIVE for relation in family):
            return None
        missing = [relation for relation in family if self.kinds[relation] is Kind.MISSING]
        return min(missing, key=lambda relation: _distance(name, relation), default=None)


def _base(name: str) -> str:
    base = name.partition(".")[0]
    return base if base.endswith("__") else base.rstrip("_")


def _families(entries: Iterable[str]) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in entries:
        families.setdefault(_base(name), []).append(name)
    return families


def _distance(name: str, relation: str) -> int:
    """Rank what an operator probably calls: its own ``out``, its in-place form, any other."""
    if relation.startswith((f"{name}_", f"{name}.")) and not relation.startswith(f"{name}_."):
        return 1 if relation == f"{name}_" else 0
    return 2


@functools.cache
def installed_index() -> Index:
    """Return the installed torch's operators; none where it ships no yaml."""
    path = _yaml_path()
    if path is None:
        return Index({})
    with path.open(encoding="utf-8") as stream:
        return Index(parse(stream))


def _yaml_path() -> Path | None:
    spec = importlib.util.find_spec("torchgen")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "packaged" / "ATen" / "native" / "native_functions.yaml"
        if path.is_file():
            return path
    return None
