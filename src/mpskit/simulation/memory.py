"""Charges live storages to a model of the Mac's allocator.

The model is built when it is first used, as torch builds its allocator: only then are the watermark
variables read, once. A storage may die anywhere, even inside the model's own code when the garbage
collector runs there, so frees are queued and applied before the next figure.
"""

from __future__ import annotations

import os
import threading
from collections import deque

from mpskit.allocator import (
    AllocatorLimitError,
    BufferTooLargeError,
    MpsAllocator,
    WatermarkError,
    allocator_for,
)
from mpskit.allocator.mps_rounding import aligned_size
from mpskit.allocator.mps_text import oom_text
from mpskit.allocator.watermarks import read_watermarks
from mpskit.backends.versions import has

__all__ = ["Memory"]


class Memory:
    """The simulated Mac's GPU memory.

    Args:
        torch_version: whose allocator it is.
        recommended_bytes: what ``recommended_max_memory()`` returns.
        max_buffer_bytes: the largest single buffer.
        broken: every allocation fails, as on a hosted runner's virtual machine.
        refusal: torch's error if it cannot use the GPU at all; None if it can.
    """

    def __init__(
        self,
        torch_version: str,
        *,
        recommended_bytes: int,
        max_buffer_bytes: int | None,
        broken: bool = False,
        refusal: str | None = None,
    ) -> None:
        self.recommended_bytes = recommended_bytes
        self.max_buffer_bytes = max_buffer_bytes
        self._torch_version = torch_version
        self._broken = broken
        self._refusal = refusal
        self._model: MpsAllocator | None = None
        self._failed: str | None = None
        self._freed: deque[int] = deque()
        self._lock = threading.RLock()

    @property
    def model(self) -> MpsAllocator:
        """The model with every queued free applied; building it counts as the first use.

        Raises:
            RuntimeError: the watermark ratios are invalid; torch's own text.
        """
        with self._lock:
            if self._model is None:
                self._model = self._build()
            return self._settled(self._model)

    def use(self) -> None:
        """Count as a use of the allocator, which reads the variables unless it has already."""
        self.model  # noqa: B018 - building it is the use

    def peek(self) -> MpsAllocator | None:
        """Return the settled model, or None when nothing has used it."""
        return None if self._model is None else self.model

    def charge(self, size: int) -> int | None:
        """Allocate and return the block; None where torch would request no buffer.

        Raises:
            RuntimeError: it does not fit; torch's own text.
        """
        if not size:
            return None
        with self._lock:
            model = self._model
            if model is None or self._freed:
                model = self.model
            if self._broken:
                raise RuntimeError(self._broken_text(model, size))
            try:
                return model.allocate(size)
            except (AllocatorLimitError, BufferTooLargeError) as error:
                raise RuntimeError(str(error)) from None

    def _broken_text(self, model: MpsAllocator, size: int) -> str:
        return oom_text(
            self._torch_version,
            allocated=0,
            other=0,
            max_allowed=model.limit_bytes,
            requested=aligned_size(size),
            pool="shared" if has("mps.shared_storage", self._torch_version) else "private",
        )

    def release(self, block: int) -> None:
        """Queue a block to be freed; safe wherever a storage can die."""
        self._freed.append(block)

    def _settled(self, model: MpsAllocator) -> MpsAllocator:
        freed = self._freed
        while freed:
            model.free(freed.popleft())
        return model

    def _build(self) -> MpsAllocator:
        if self._refusal is not None:
            raise RuntimeError(self._refusal)
        # A real allocator reads the variables into statics, so an error lasts for the process.
        if self._failed is not None:
            raise RuntimeError(self._failed)
        watermarks = read_watermarks(os.environ)
        try:
            return allocator_for(
                "mps",
                torch_version=self._torch_version,
                recommended_bytes=self.recommended_bytes,
                max_buffer_bytes=self.max_buffer_bytes,
                high=watermarks.high,
                low=watermarks.low,
            )
        except WatermarkError as error:
            self._failed = str(error)
            raise RuntimeError(self._failed) from None
