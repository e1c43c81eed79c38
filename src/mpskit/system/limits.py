"""The process's own resource limits: ``RLIMIT_DATA``, the private writable memory it may map."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DataLimit", "can_map", "data_limit", "set_data_limit"]


class DataLimit(NamedTuple):
    """``RLIMIT_DATA`` in bytes; None where there is no limit."""

    soft: int | None
    hard: int | None


def data_limit() -> DataLimit:
    """Return the limit in force (POSIX only)."""
    import resource

    return DataLimit(
        *(
            None if size == resource.RLIM_INFINITY else size
            for size in resource.getrlimit(resource.RLIMIT_DATA)
        )
    )


def set_data_limit(size: int | None) -> None:
    """Set the soft limit; None lifts it. The hard limit stays."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = resource.RLIM_INFINITY if size is None else size
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def can_map(size: int) -> bool:
    """Return whether ``size`` bytes can be mapped; no page of them is touched."""
    import mmap

    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True
