"""What modules remember about the machine and its devices, in one registry.

A simulated Mac is another machine: entering and leaving it walks this registry, so that no module
takes what it knows into the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["remembered", "set_aside"]

_Container = TypeVar("_Container", dict[Any, Any], set[Any])
_registry: list[dict[Any, Any] | set[Any]] = []


def remembered(container: _Container) -> _Container:
    """Register a module's dict or set and return it; it must never be replaced by another one."""
    _registry.append(container)
    return container


def set_aside() -> Callable[[], None]:
    """Empty every registered container.

    Returns:
        A function that puts back what was there, and empties those registered since.
    """
    # copy() and clear() are each one step: another thread's additions fall before or after it.
    saved = [(container, container.copy()) for container in _registry]
    _forget()

    def put_back() -> None:
        _forget()
        for container, before in saved:
            container.update(before)

    return put_back


def _forget() -> None:
    for container in _registry:
        container.clear()
