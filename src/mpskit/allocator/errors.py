"""Errors that the allocator models raise where the real allocators fail."""

from __future__ import annotations

from typing import Any

from mpskit.errors import ArgumentError, OutOfMemory

__all__ = ["AllocatorLimitError", "BufferTooLargeError", "WatermarkError"]


class AllocatorLimitError(OutOfMemory):
    """An allocation would exceed the allocator's limit.

    Attributes:
        message: the text that torch raises in the same state, also ``str()`` of this error.
        allocated: bytes that the allocator holds from the driver (whole heaps or segments).
        other: bytes that the driver counts beside the allocator's own.
        max_allowed: the limit in bytes; None without one.
        requested: bytes asked for, after rounding.
        pool: ``"private"`` or ``"shared"`` on MPS, ``""`` elsewhere.
    """

    def __init__(
        self,
        message: str,
        *,
        allocated: int,
        other: int,
        max_allowed: int | None,
        requested: int,
        pool: str = "",
        given: Any = None,
    ) -> None:
        super().__init__(message, given=requested if given is None else given)
        self.message = message
        self.allocated = allocated
        self.other = other
        self.max_allowed = max_allowed
        self.requested = requested
        self.pool = pool


class BufferTooLargeError(OutOfMemory):
    """A buffer would reach or exceed the largest that Metal makes.

    Attributes:
        message: the text that torch raises, also ``str()`` of this error.
        requested: bytes asked for.
        max_buffer: Metal's ``maxBufferLength`` in bytes.
    """

    def __init__(self, message: str, *, requested: int, max_buffer: int) -> None:
        super().__init__(message, given=requested)
        self.message = message
        self.requested = requested
        self.max_buffer = max_buffer


class WatermarkError(ArgumentError, RuntimeError):
    """A watermark ratio that torch refuses, with torch's text; a RuntimeError, as in torch."""
