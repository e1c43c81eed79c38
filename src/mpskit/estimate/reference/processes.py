"""One process of several: what DistributedDataParallel and ``fully_shard`` add to a step.

Neither runs here. DistributedDataParallel keeps a second copy of the gradients, in buckets.
``fully_shard``, applied to each layer and then to the model, keeps a share of every parameter,
gradient and state, and allocates whole layers for as long as they compute. Source:
torch/distributed/fsdp/_fully_shard/ of torch 2.13 (``_fsdp_param_group.py``,
``_fsdp_collectives.py``, ``_fsdp_state.py``) with its defaults: a layer is resharded after its
forward pass and the root is not, backward prefetches the next layer, and one input of a
reduce-scatter is kept until the next one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch

from mpskit._base.arguments import shown
from mpskit.dispatch.dataless_tensors import dataless_storage
from mpskit.dispatch.patches import Patches
from mpskit.errors import ArgumentError
from mpskit.estimate.reference.repeat_layers import AROUND, LayerMarks
from mpskit.estimate.targets import check_processes
from mpskit.estimate.trace.steps import default_loss

__all__ = ["FullyShard", "Processes", "add_ddp_buckets", "read_processes"]

Sharding = Literal["ddp", "fsdp"]
Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Processes:
    """How a model is trained by several processes.

    Attributes:
        count: of the processes.
        sharding: ``ddp`` or ``fsdp``.
    """

    count: int
    sharding: Sharding

    def install(
        self, marks: LayerMarks, patches: Patches, optimizer: Any, stored: list[int], device: str
    ) -> Loss:
        """Add to a step what the other processes make necessary; return the loss to call.

        Args:
            marks: the layers, and the log.
            patches: undo it.
            optimizer: of the step, or None.
            stored: as for :class:`FullyShard`.
            device: the target; what it stages in a collective depends on it.
        """
        if self.sharding == "ddp":
            add_ddp_buckets(marks, patches)
            return default_loss
        shards = FullyShard(marks, self.count, stored, staging=device == "cpu")
        shards.install(patches)
        if optimizer is not None:
            optimizer.step = functools.partial(shards.stepping, optimizer.step)
        return shards.loss(default_loss)

    def depth(self, layers: Sequence[int]) -> int | None:
        """Return how many layers of each stack to trace, if not as many as one process needs.

        The first layer has none below to gather, and the second gathers the first, whose relative
        positions make it larger in an encoder-decoder.
        """
        if self.sharding == "ddp":
            return None
        return 4 if len(layers) == 1 else 6

    @property
    def note(self) -> str:
        """Say whose memory the figures are."""
        by = {"ddp": "DistributedDataParallel", "fsdp": "fully_shard on each layer"}[self.sharding]
        return f"one process of {self.count} with {by}; what NCCL itself takes is not counted"


def read_processes(
    world_size: int, sharding: str | None, *, training: bool, device: str, base: str | None
) -> Processes | None:
    """Return how several processes train; None for one.

    Raises:
        ArgumentError: a combination that does not exist, or that is not modelled.
        ArgumentTypeError: ``world_size`` is no int.
    """
    check_processes(world_size, device)
    if sharding not in (None, "ddp", "fsdp"):
        raise ArgumentError(f"sharding is 'ddp' or 'fsdp', not {shown(sharding)}", given=sharding)
    if world_size == 1:
        if sharding is None:
            return None
        raise ArgumentError("sharding= is for several processes: give world_size=", given=sharding)
    if not training:
        raise ArgumentError("world_size= is for training: leave training=False away", given=False)
    if sharding == "fsdp" and base in ("int8", "nf4"):
        raise ArgumentError(f"fully_shard with a base of {base} is not modelled", given=base)
    return Processes(world_size, cast("Sharding", sharding or "ddp"))


def add_ddp_buckets(marks: LayerMarks, patches: Patches) -> None:
    """Record the gradients' buckets: as many bytes as the trained parameters of each layer have.

    The real ones are of up to 25 MiB, across the layers' borders. Gradients are copied into them
    (``gradient_as_bucket_view=False``, the default).
    """
    storages = []
    for layer, parameters in _by_layer(marks).items():
        size = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        if size:
            storages.append(dataless_storage(size))
            marks.record(storages[-1], layer, "gradients")
    patches.on_exit(storages.clear)


def _by_layer(marks: LayerMarks) -> dict[int, list[torch.nn.Parameter]]:
    """Return the parameters of every layer, and of what is around them."""
    groups = {layer: list(module.parameters()) for layer, module in marks.layers()}
    inside = {id(parameter) for group in groups.values() for parameter in group}
    around = [p for p in marks.model.parameters() if id(p) not in inside]
    return {AROUND: around, **groups}


@dataclass
class _Group:
    """Parameters that are gathered together; sizes in bytes, padded as torch pads them.

    ``shards`` are of what is stored, ``whole`` of what is computed with, by parameter; ``cast`` is
    of the shares that are cast before they are gathered, together.
    """

    parameters: list[torch.nn.Parameter]
    shards: list[int]
    whole: list[int]
    cast: int
    gathered: torch.UntypedStorage | None = None
    unsharded: list[torch.UntypedStorage] = field(default_factory=list)


class FullyShard:
    """Adds what ``fully_shard`` allocates and frees to the events of a trace, as it runs.

    Args:
        marks: the layers, and the log.
        world_size: processes.
        stored: bytes of a number of each parameter as it is stored, in the model's order; it
            computes in its own dtype (``MixedPrecisionPolicy``).
        staging: whether a collective copies what it sends first, as gloo does and NCCL does not.
    """

    def __init__(
        self, marks: LayerMarks, world_size: int, stored: list[int], *, staging: bool
    ) -> None:
        self.log, self.staging = marks.log, staging
        self.model, self.marks = marks.model, marks
        itemsizes = {id(p): size for p, size in zip(self.model.parameters(), stored, strict=True)}
        self.groups: dict[int, _Group] = {}
        for layer, parameters in _by_layer(marks).items():
            numels = [_shard_numel(p, world_size) for p in parameters]
            shards = [n * itemsizes[id(p)] for p, n in zip(parameters, numels, strict=True)]
            computed = [n * p.element_size() for p, n in zip(parameters, numels, strict=True)]
            cast = sum(c for c, s in zip(computed, shards, strict=True) if c != s)
            whole = [size * world_size for size in computed]
            self.groups[layer] = _Group(parameters, shards, whole, cast)
        self.order: list[int] = []  # the groups as their forward passes end
        self.reduced: set[int] = set()
        self.sharded: dict[int, torch.Tensor] = {}  # gradients of earlier batches
        self.last_gathered: torch.UntypedStorage | None = None
        self.reducing: torch.UntypedStorage | None = None

    def install(self, patches: Patches) -> None:
        """Charge shares of the parameters, and watch the passes until ``patches`` are undone."""
        for group in self.groups.values():
            for parameter, size in zip(group.parameters, group.shards, strict=True):
                self.log.charge(parameter.untyped_storage(), size)
        self.marks.passes = self
        patches.on_exit(self._drop)
        for register, hook in (
            (self.model.register_forward_pre_hook, lambda *_: self.enter(AROUND)),
            (self.model.register_forward_hook, self._left),
        ):
            patches.on_exit(register(hook).remove)

    def loss(self, loss: Loss) -> Loss:
        """Return the loss, whose gradient begins the backward pass."""

        def watched(model: torch.nn.Module, batch: Any) -> torch.Tensor:
            value = loss(model, batch)
            value.register_hook(self._begin)
            return value

        return watched

    def stepping(self, step: Callable[[], Any]) -> Any:
        """Run an optimizer's step; what it makes is of the shares' size."""
        trained = [
            (shard, p.numel() * p.element_size())
            for group in self.groups.values()
            for p, shard in zip(group.parameters, group.shards, strict=True)
            if p.requires_grad
        ]
        shards, whole = (sum(sizes) for sizes in zip(*trained, strict=True))
        start = len(self.log.records)
        result = step()
        for record in self.log.records[start:]:
            if record.size > _SCALAR:
                record.size = -(-record.size * shards // whole)
        return result

    def enter(self, layer: int) -> None:
        """Gather a layer for its forward pass; its buffer is kept until the next is gathered."""
        group = self.groups[layer]
        gathered = self._gather(group)
        self.last_gathered = None
        self._unshard(group)
        self.last_gathered = gathered

    def leave(self, layer: int) -> None:
        """Give a layer up after its forward pass."""
        self.groups[layer].unsharded.clear()
        self.order.append(layer)

    def backward_enters(self, layer: int) -> None:
        """Gather a layer for its backward pass, and begin to gather the one below."""
        group = self.groups[layer]
        if group.gathered is None:
            group.gathered = self._gather(group)
        self._unshard(group)
        group.gathered = None
        self._prefetch(layer)

    def backward_leaves(self, layer: int) -> None:
        """Give a layer up, and sum its gradients over the processes."""
        group = self.groups[layer]
        self.reduced.add(layer)
        group.unsharded.clear()
        self.reducing = None
        sizes = zip(group.parameters, group.shards, group.whole, strict=True)
        made = [each for each in sizes if each[0].grad is not None]
        if not made:
            return
        self.reducing = self._new(sum(whole for _, _, whole in made))
        for parameter, shard, _ in made:
            self._reduce(parameter, shard)
        if self.staging:
            self.log.workspace(self.reducing.nbytes())

    def _reduce(self, parameter: torch.nn.Parameter, shard: int) -> None:
        """Exchange a whole gradient for its share, or add it to that of the batches before."""
        assert parameter.grad is not None  # noqa: S101 - the caller has looked
        before = self.sharded.pop(id(parameter), None)
        if before is None:
            self.log.resize(parameter.grad.untyped_storage(), shard, "gradients")
        else:
            parameter.grad = before
            self.log.workspace(shard)

    def _begin(self, _: torch.Tensor) -> None:
        """Put the gradients so far aside, and begin to gather the last layer."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                self.sharded[id(parameter)] = parameter.grad
                parameter.grad = None
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._finish)
        self._prefetch(AROUND)

    def _finish(self) -> None:
        """Reduce what is left at the end of a backward pass: the root, inputs without gradient."""
        for layer in self.groups:
            if layer not in self.reduced:
                self.marks.mark(layer)
                self.backward_leaves(layer)
        self.marks.mark(AROUND)
        for parameter in self.model.parameters():  # without a gradient in this batch
            parameter.grad = self.sharded.pop(id(parameter), parameter.grad)
        self._drop()

    def _left(self, *_: Any) -> None:
        self.last_gathered = None
        self.order.append(AROUND)

    def _prefetch(self, layer: int) -> None:
        index = self.order.index(layer)
        if index > 0:
            target = self.groups[self.order[index - 1]]
            target.gathered = self._gather(target)

    def _gather(self, group: _Group) -> torch.UntypedStorage:
        cast = self._new(group.cast) if group.cast else None
        gathered = self._new(sum(group.whole))
        if self.staging:
            self.log.workspace(gathered.nbytes())
        del cast  # torch holds it until the collective has returned
        return gathered

    def _unshard(self, group: _Group) -> None:
        group.unsharded = [self._new(size) for size in group.whole]

    def _new(self, size: int) -> torch.UntypedStorage:
        storage = dataless_storage(size)
        self.log.add(storage, "temporaries")
        return storage

    def _drop(self) -> None:
        for group in self.groups.values():
            group.gathered = None
            group.unsharded.clear()
        self.last_gathered = self.reducing = None
        self.order.clear()
        self.reduced.clear()
        self.sharded.clear()


_SCALAR = 8  # bytes: an optimizer's count of steps, which every process keeps


def _shard_numel(parameter: torch.Tensor, world_size: int) -> int:
    """Return the numbers of a share: rows of the first dimension, rounded up."""
    rows = parameter.shape[0] if parameter.dim() else 1
    return -(-rows // world_size) * (parameter.numel() // max(rows, 1))
