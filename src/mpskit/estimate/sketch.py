"""Autograd on sizes: what the operators of a step allocate, keep and free, without torch.

A :class:`Cell` is one storage; it goes when nothing refers to it any more, which Python's
reference counting sees at the moment when torch's own would. A :class:`Var` has a cell and, where
it needs a gradient, the node that made it. Each operator keeps for the backward pass what torch's
formula keeps (``tools/autograd/derivatives.yaml``); the backward pass runs the nodes in reverse
order of their making, as torch's engine does on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Cell", "Join", "Mark", "Node", "Param", "Sketch", "Var"]


class Cell:
    """One storage of the step; its end is an event."""

    __slots__ = ("events", "number", "size")

    def __init__(self, events: list[int], number: int, size: int) -> None:
        self.events = events
        self.number = number
        self.size = size
        events.append(number)

    def __del__(self) -> None:
        self.events.append(~self.number)


class Param:
    """A weight: so many numbers of ``item`` bytes each; ``grad`` stays after the backward pass."""

    __slots__ = ("grad", "item", "numel", "trainable")

    def __init__(self, numel: int, item: int, *, trainable: bool = True) -> None:
        self.numel = numel
        self.item = item
        self.trainable = trainable
        self.grad: Cell | None = None

    def take(self, grad: Cell, sketch: Sketch) -> None:
        """Gather a gradient; a second one is summed with the first into a third storage."""
        self.grad = grad if self.grad is None else sketch.new(grad.size)

    @property
    def size(self) -> int:
        """Bytes of the weight."""
        return self.numel * self.item

    @property
    def var(self) -> Var:
        """The weight as an operator's input: without a storage of the step."""
        return Var(None, self.numel, self.item, self if self.trainable else None)


class Node:
    """A step of the backward pass: allocate ``scratch``, then the gradients of ``targets``.

    ``sizes`` are the gradients' bytes; 0 passes the incoming gradient on as it is. ``kept`` are
    the storages that the formula needs.
    """

    __slots__ = ("grad", "kept", "layer", "scratch", "sizes", "targets")

    def __init__(
        self,
        targets: Sequence[Node | Param | None],
        sizes: Sequence[int],
        kept: Sequence[Cell | None],
        scratch: Sequence[int],
        layer: int,
    ) -> None:
        self.targets = targets
        self.sizes = sizes
        self.kept = kept
        self.scratch = scratch
        self.layer = layer
        self.grad: Cell | None = None

    def take(self, grad: Cell, sketch: Sketch) -> None:
        """Gather a gradient; a second one is summed with the first into a third storage."""
        self.grad = grad if self.grad is None else sketch.new(grad.size)


class Join(Node):
    """The origin of views that together are one storage: it keeps their gradients apart."""

    __slots__ = ()

    def take(self, grad: Cell, sketch: Sketch) -> None:  # noqa: ARG002, D102 - as the base
        self.kept = (*self.kept, grad)
        self.grad = grad


class Var:
    """A result: its storage (None for a weight's own), count of numbers, bytes of each, origin."""

    __slots__ = ("cell", "item", "node", "numel")

    def __init__(
        self, cell: Cell | None, numel: int, item: int, node: Node | Param | None = None
    ) -> None:
        self.cell = cell
        self.numel = numel
        self.item = item
        self.node = node

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return self.numel * self.item


class Mark(NamedTuple):
    """From this position in the events on, what happens belongs to that phase and layer."""

    position: int
    phase: str
    layer: int


class Sketch:
    """Records one step.

    Attributes:
        events: a cell's number when it is allocated, ``~number`` when it goes.
        sizes: bytes by cell number.
        marks: where phases and layers begin; layer -1 is what stands around the layers.
        low: bytes of autocast's type; None without autocast.
        wide_powers: whether autocast takes powers in float32, as on MPS and CUDA, not the CPU.
        grad: whether gradients are recorded.
    """

    def __init__(
        self, *, grad: bool = True, low: int | None = None, wide_powers: bool = False
    ) -> None:
        self.events: list[int] = []
        self.sizes: list[int] = []
        self.marks: list[Mark] = []
        self.low = low
        self.wide_powers = wide_powers and low is not None
        self.grad = grad
        self.layer = -1
        self._nodes: list[Node] = []
        self._casts: dict[Param, Var] = {}

    def new(self, size: int) -> Cell:
        """Allocate ``size`` bytes."""
        self.sizes.append(size)
        return Cell(self.events, len(self.sizes) - 1, size)

    def mark(self, phase: str, layer: int = -1) -> None:
        """Begin a phase or a layer."""
        self.layer = layer
        self.marks.append(Mark(len(self.events), phase, layer))

    def op(
        self,
        inputs: Sequence[Var],
        numel: int,
        item: int,
        *,
        keeps: Sequence[Cell | None] = (),
        scratch: Sequence[int] = (),
        passes: bool = False,
        made: Cell | None = None,
    ) -> Var:
        """Return an operator's result.

        Args:
            inputs: what it reads; each gets a gradient of its own size.
            numel: numbers of the result.
            item: bytes of each.
            keeps: storages that its formula keeps.
            scratch: bytes of what the backward pass needs for a moment.
            passes: the gradient is passed on as it is.
            made: the result's storage, where it was allocated before.
        """
        cell = made or self.new(numel * item)
        if not self.grad or not any(var.node for var in inputs):
            return Var(cell, numel, item)
        sizes = [0 if passes and var.item == item else var.size for var in inputs]
        node = Node([var.node for var in inputs], sizes, keeps, scratch, self.layer)
        self._nodes.append(node)
        return Var(cell, numel, item, node)

    def backward(self, loss: Var) -> None:
        """Run the backward pass from a result on; the nodes and what they kept are used up."""
        if not isinstance(loss.node, Node):
            return
        loss.node.grad = self.new(loss.size)
        layer = None
        while self._nodes:
            node = self._nodes.pop()
            if node.layer != layer:
                layer = node.layer
                self.mark("backward", layer)
            self._run(node)

    def _run(self, node: Node) -> None:
        grad, node.grad = node.grad, None
        if grad is not None:
            held = [self.new(size) for size in node.scratch]
            for target, size in zip(node.targets, node.sizes, strict=True):
                if target is not None:
                    target.take(self.new(size) if size else grad, self)
            del held
        node.kept = ()

    def views(self, x: Var, count: int) -> list[Var]:
        """Cut a result into views of equal size; their gradients are joined in a new storage."""
        numel = x.numel // count
        if x.node is None:
            return [Var(x.cell, numel, x.item) for _ in range(count)]
        join = Join([x.node], [x.size], (), (), self.layer)
        self._nodes.append(join)
        views = []
        for _ in range(count):
            node = Node([join], [0], (), (), self.layer)
            self._nodes.append(node)
            views.append(Var(x.cell, numel, x.item, node))
        return views

    # Operators that need no more than that.

    def cast(self, x: Var, item: int) -> Var:
        """Convert to another type; nothing happens where it has it."""
        return x if x.item == item else self.op([x], x.numel, item)

    def lowered(self, x: Var) -> Var:
        """Convert to autocast's type, where there is one."""
        return x if self.low is None else self.cast(x, self.low)

    def scaled(self, x: Var) -> Var:
        """Multiply or divide by what needs no gradient and stays anyway."""
        return self.op([x], x.numel, x.item)

    def shifted(self, x: Var) -> Var:
        """Add what needs no gradient, or copy into another order."""
        return self.op([x], x.numel, x.item, passes=True)

    def add(self, a: Var, b: Var) -> Var:
        """Add two results; the type is the wider one."""
        return self.op([a, b], a.numel, max(a.item, b.item), passes=True)

    def product(self, a: Var, b: Var, numel: int | None = None) -> Var:
        """Multiply two results (as matrices into ``numel`` numbers); each keeps the other."""
        keeps = (b.cell if a.node else None, a.cell if b.node else None)
        return self.op([a, b], numel or a.numel, max(a.item, b.item), keeps=keeps)

    def of_input(self, x: Var, *, moments: int = 0) -> Var:
        """Apply a function whose gradient needs its input (GELU, SiLU, a power)."""
        return self.op([x], x.numel, x.item, keeps=(x.cell,), scratch=[x.size] * moments)

    def of_output(self, x: Var) -> Var:
        """Apply a function whose gradient needs its result (tanh, softmax)."""
        made = self.new(x.size)
        return self.op([x], x.numel, x.item, keeps=(made,), made=made)

    def linear(self, x: Var, weight: Param, bias: Param | None, rows: int) -> Var:
        """Multiply ``rows`` rows by a weight; under autocast in its type."""
        w = self._weight(weight)
        x = self.cast(x, w.item)
        wide = weight.numel // (x.numel // rows)
        keeps = (w.cell if x.node else None, x.cell if w.node else None)
        inputs = [x, w] if bias is None else [x, w, self._weight(bias)]
        return self.op(inputs, rows * wide, x.item, keeps=keeps)

    def _weight(self, param: Param) -> Var:
        """Return a weight as a product sees it: under autocast a cast, which is kept."""
        if self.low is None or self.low == param.item:
            return param.var
        if param not in self._casts:
            self._casts[param] = self.cast(param.var, self.low)
        return self._casts[param]

    def end_autocast(self) -> None:
        """Drop the kept casts, as the end of autocast's block does."""
        self._casts.clear()
