"""A sketched step on the target's allocator: what cells count for, and what the driver holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpskit.allocator import AllocatorModel, allocator_for
from mpskit.estimate.repeat_layers import Step

__all__ = ["Counted", "Parts", "count"]

# Both allocators keep requests up to this size apart, in heaps or segments of this many bytes.
_SMALL = 1 << 20
_SMALL_HEAPS = {"mps": 8 << 20, "cuda": 2 << 20}


@dataclass(frozen=True)
class Parts:
    """What a training or inference step is made of, in bytes.

    ``weights`` and ``trained`` are the sizes of all and of the trained weights, ``states`` how
    many tensors of a weight's size the optimizer keeps, ``passing`` what it takes for a moment:
    ``single`` tensors of one weight's size, or on CUDA ``foreach`` of every weight's. ``whole``:
    small requests matter too, because the allocator does not cut what it has cached.
    """

    device: str
    step: Step
    weights: list[int]
    trained: list[int]
    states: int
    single: int
    foreach: int
    batch: int
    whole: bool = False

    def optimizing(self) -> list[list[int]]:
        """Return what the optimizer holds at once, each time that this differs."""
        if self.device == "cuda":
            return [self.trained * self.foreach]
        return [[size] * self.single for size in dict.fromkeys(self.trained)]


@dataclass(frozen=True)
class Counted:
    """The step's bytes as the target counts them.

    ``sizes`` is by cell; ``fixed`` are weights, states and batch; ``optimizing`` the most that the
    optimizer takes for a moment; ``driver`` the most that the allocator holds (0: what is live).
    """

    sizes: list[int]
    fixed: int
    optimizing: int
    driver: int


def count(parts: Parts, torch_version: str) -> Counted:
    """Return a step's bytes on its device."""
    if parts.device != "cpu":
        return _Player(parts, torch_version).counted()
    most = max((sum(sizes) for sizes in parts.optimizing()), default=0)
    fixed = sum(parts.weights) + parts.states * sum(parts.trained) + parts.batch
    return Counted(parts.step.sizes, fixed, most, 0)


class _Player:
    """Replays two steps: what the first one leaves cached shapes what the second one gets.

    Where cached memory is cut and joined, only requests over 1 MiB are replayed: the small ones
    fill heaps of their own without a gap to speak of, so for them the sum is enough.
    """

    def __init__(self, parts: Parts, torch_version: str) -> None:
        self.parts = parts
        self.model: AllocatorModel = allocator_for(parts.device, torch_version=torch_version)
        self.least = 0 if parts.whole else _SMALL
        self.events: list[int] = []
        self.small: list[int] = []
        sizes = parts.step.sizes
        for event in parts.step.events:
            large = sizes[event if event >= 0 else ~event] > self.least
            (self.events if large else self.small).append(event)

    def counted(self) -> Counted:
        parts, model = self.parts, self.model
        small = self._small_live()
        self._keep(parts.weights)
        left = self._pass(None)
        self._keep(size for size in parts.trained for _ in range(parts.states))
        self._optimize()
        for block in left:
            model.free(block)
        fixed = model.live_bytes + small[0]
        sizes = list(parts.step.sizes)
        self._pass(sizes)
        optimizing = self._optimize()
        heap = _SMALL_HEAPS[parts.device]
        driver = model.peak_driver_bytes + -(-small[1] // heap) * heap
        return Counted(sizes, fixed, optimizing, driver)

    def _small_live(self) -> tuple[int, int]:
        """Return the bytes of small requests that stay, and the most at any moment."""
        parts, sizes = self.parts, self.parts.step.sizes
        fixed = parts.batch + sum(size for size in parts.weights if size <= self.least)
        fixed += parts.states * sum(size for size in parts.trained if size <= self.least)
        live = most = fixed
        for event in self.small:
            live += sizes[event] if event >= 0 else -sizes[~event]
            most = max(most, live)
        return fixed, most

    def _keep(self, sizes: Iterable[int]) -> None:
        """Allocate for good what is not small."""
        for size in sizes:
            if size > self.least:
                self.model.allocate(size)

    def _pass(self, counted: list[int] | None) -> list[int]:
        """Replay a pass; return the blocks that it leaves, and write down what each cell counts."""
        allocate, free, sizes = self.model.allocate, self.model.free, self.parts.step.sizes
        blocks: dict[int, int] = {}
        for event in self.events:
            if event < 0:
                free(blocks.pop(~event))
            elif counted is None:
                blocks[event] = allocate(sizes[event])
            else:
                before = self.model.live_bytes
                blocks[event] = allocate(sizes[event])
                counted[event] = self.model.live_bytes - before
        return list(blocks.values())

    def _optimize(self) -> int:
        """Replay the optimizer's own; return the most that it counts for."""
        model, most = self.model, 0
        for sizes in self.parts.optimizing():
            before = model.live_bytes
            blocks = [model.allocate(size) for size in sizes]
            most = max(most, model.live_bytes - before)
            for block in blocks:
                model.free(block)
        return most
