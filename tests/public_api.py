"""The public API as text: every name of ``mpskit`` with its signature, fields and methods.

``python tests/public_api.py --write`` writes ``tests/public_api.txt``, which a test compares with
what is there. A change of that file is a change of what users rely on: the changelog names it.
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".txt")


def lines() -> Iterator[str]:
    """Yield a line for each name, and one for each field and method of a class."""
    import mpskit

    for name in sorted(mpskit.__all__):
        value = getattr(mpskit, name)
        if inspect.isclass(value):
            yield from _class(name, value)
        elif callable(value):
            yield f"{name}{_signature(value)}"
        else:
            yield f"{name}: {type(value).__name__}"


def _signature(function: Any) -> str:
    """Return names, kinds and defaults of the arguments; annotations may be refined."""
    signature = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty, default=_default(parameter))
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


class _Shown:
    """A default whose text does not depend on where it lies in memory."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _default(parameter: inspect.Parameter) -> Any:
    default = parameter.default
    plain = default is inspect.Parameter.empty or isinstance(
        default, str | int | float | tuple | None
    )
    return default if plain else _Shown(f"<{type(default).__name__}>")


def _class(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__)
    yield f"class {name}({bases})"
    if issubclass(cls, enum.Enum):
        yield from (f"  {name}.{member.name} = {member.value!r}" for member in cls)
        return
    for field, info in getattr(cls, "model_fields", {}).items():
        yield f"  {name}.{field}{'' if info.is_required() else ' (has a default)'}"
    hidden = [base for base in cls.__mro__[1:] if base.__name__.startswith("_")]
    for attribute in sorted({key for one in (cls, *hidden) for key in vars(one)}):
        if attribute.startswith("_") and attribute not in ("__enter__", "__exit__", "__bool__"):
            continue
        member = inspect.getattr_static(cls, attribute)
        if isinstance(member, property):
            yield f"  {name}.{attribute} (property)"
        elif isinstance(member, staticmethod | classmethod) or inspect.isfunction(member):
            yield f"  {name}.{attribute}{_signature(getattr(member, '__func__', member))}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    else:
        print("\n".join(lines()))
