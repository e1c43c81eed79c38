"""Autograd on sizes: what the operators of a step allocate, keep and free, without torch.

A :class:`Cell` is one storage; it goes when nothing refers to it any more, which Python's
reference counting sees at the moment when torch's own would. A :class:`Var` has a cell and, where
it needs a gradient, the node that made it. Each operator keeps for the backward pass what torch's
formula keeps (``tools/autograd/derivatives.yaml``); the backward pass runs the nodes in reverse
order of their making, as torch's engine does on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Cell", "Node", "Param", "Rule", "Sketch", "Var"]

# the gradient of an output -> the gradients of the inputs, in the order of the node's targets
Rule = Callable[["Cell"], Sequence["Cell | None"]]


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


class Node:
    """One step of the backward pass: where the gradient of an output is gathered and passed on."""

    __slots__ = ("grad", "layer", "rule", "targets")

    def __init__(self, rule: Rule, targets: Sequence[Node | Param | None], layer: int) -> None:
        self.rule: Rule | None = rule
        self.targets = targets
        self.layer = layer
        self.grad: Cell | None = None


class Param:
    """A weight: so many numbers of ``item`` bytes each; ``grad`` stays after the backward pass."""

    __slots__ = ("grad", "item", "numel", "trainable")

    def __init__(self, numel: int, item: int, *, trainable: bool = True) -> None:
        self.numel = numel
        self.item = item
        self.trainable = trainable
        self.grad: Cell | None = None

    @property
    def size(self) -> int:
        """Bytes of the weight."""
        return self.numel * self.item


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


class Sketch:
    """Records one step.

    Attributes:
        events: a cell's number when it is allocated, ``~number`` when it goes.
        sizes: bytes by cell number.
        marks: ``(position in events, what begins there, layer)``.
        low: bytes of autocast's type; None without autocast.
    """

    def __init__(self, *, grad: bool = True, low: int | None = None) -> None:
        self.events: list[int] = []
        self.sizes: list[int] = []
        self.marks: list[tuple[int, str, int]] = []
        self.low = low
        self.grad = grad
        self.layer = -1
        self._nodes: list[Node] = []
        self._casts: dict[Param, Var] = {}

    def new(self, size: int) -> Cell:
        """Allocate ``size`` bytes."""
        self.sizes.append(size)
        return Cell(self.events, len(self.sizes) - 1, size)

    def mark(self, what: str, layer: int = -1) -> None:
        """Say that what follows belongs to a layer (or, at -1, to none)."""
        self.layer = layer
        self.marks.append((len(self.events), what, layer))

    def out(
        self,
        numel: int,
        item: int,
        inputs: Sequence[Var],
        rule: Callable[[], Rule],
        cell: Cell | None = None,
    ) -> Var:
        """Return an operator's result; ``rule`` is asked for only where a gradient is needed."""
        made = cell or self.new(numel * item)
        targets = [var.node for var in inputs]
        if not self.grad or not any(targets):
            return Var(made, numel, item)
        node = Node(rule(), targets, self.layer)
        self._nodes.append(node)
        return Var(made, numel, item, node)

    def weight(self, param: Param) -> Var:
        """Return a weight as a matrix product sees it: under autocast, as a cast that is kept."""
        source = Var(None, param.numel, param.item, param if param.trainable else None)
        if self.low is None or self.low == param.item:
            return source
        if param not in self._casts:
            self._casts[param] = self.cast(source, self.low)
        return self._casts[param]

    def end_autocast(self) -> None:
        """Drop the kept casts, as the end of autocast's block does."""
        self._casts.clear()

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
            grad, node.grad = node.grad, None
            if grad is not None and node.rule is not None:
                self._pass_on(node, node.rule(grad))
            node.rule = None
            del grad

    def _pass_on(self, node: Node, grads: Sequence[Cell | None]) -> None:
        for target, grad in zip(node.targets, grads, strict=True):
            if target is None or grad is None:
                continue
            # A second gradient is summed with the first into a third storage.
            target.grad = grad if target.grad is None else self.new(grad.size)

    # Operators. Bytes of a gradient are those of what it belongs to.

    def cast(self, x: Var, item: int) -> Var:
        """Convert to another type; nothing happens where it has it."""
        if x.item == item:
            return x
        size = x.size
        return self.out(x.numel, item, [x], lambda: lambda _: [self.new(size)])

    def copy(self, x: Var, numel: int | None = None) -> Var:
        """Make a contiguous copy (or a repeated one); its gradient is passed on as it is."""
        size, same = x.size, numel is None or numel == x.numel
        return self.out(
            numel or x.numel, x.item, [x], lambda: lambda g: [g if same else self.new(size)]
        )

    def scaled(self, x: Var) -> Var:
        """Multiply or divide by a number or by what needs no gradient and stays anyway."""
        size = x.size
        return self.out(x.numel, x.item, [x], lambda: lambda _: [self.new(size)])

    def shifted(self, x: Var) -> Var:
        """Add a number, or a mask that needs no gradient."""
        return self.out(x.numel, x.item, [x], lambda: lambda g: [g])

    def add(self, a: Var, b: Var) -> Var:
        """Add two results; the type is the wider one."""
        item = max(a.item, b.item)

        def rule() -> Rule:
            sizes = [None if v.item == item else v.size for v in (a, b)]
            return lambda g: [g if size is None else self.new(size) for size in sizes]

        return self.out(a.numel, item, [a, b], rule)

    def mul(self, a: Var, b: Var) -> Var:
        """Multiply two results; each is kept where the other needs a gradient."""

        def rule() -> Rule:
            kept = (b.cell if a.node else None, a.cell if b.node else None)
            sizes = [v.size if v.node else None for v in (a, b)]

            def run(_: Cell, kept: object = kept) -> list[Cell | None]:
                return [None if size is None else self.new(size) for size in sizes]

            return run

        return self.out(a.numel, max(a.item, b.item), [a, b], rule)

    def keeping_input(self, x: Var, *, scratch: int = 0) -> Var:
        """Apply a function whose gradient needs its input (GELU, SiLU, a power)."""
        return self._function(x, x.cell, scratch)

    def keeping_output(self, x: Var) -> Var:
        """Apply a function whose gradient needs its result (tanh, softmax)."""
        made = self.new(x.size)
        return self._function(x, made, 0, made)

    def _function(self, x: Var, kept: Cell | None, scratch: int, made: Cell | None = None) -> Var:
        size = x.size

        def rule() -> Rule:
            def run(_: Cell, kept: Cell | None = kept) -> list[Cell | None]:
                held = [self.new(size) for _ in range(scratch)]
                result = self.new(size)
                held.clear()
                return [result]

            return run

        return self.out(x.numel, x.item, [x], rule, made)

    def matmul(self, a: Var, b: Var, numel: int) -> Var:
        """Multiply matrices; each is kept where the other needs a gradient."""

        def rule() -> Rule:
            kept = (b.cell if a.node else None, a.cell if b.node else None)
            sizes = [v.size if v.node else None for v in (a, b)]

            def run(_: Cell, kept: object = kept) -> list[Cell | None]:
                return [None if size is None else self.new(size) for size in sizes]

            return run

        return self.out(numel, a.item, [a, b], rule)

    def linear(self, x: Var, weight: Param, bias: Param | None, width: int, wide: int) -> Var:
        """Multiply rows of ``width`` numbers by a weight into rows of ``wide``."""
        w = self.weight(weight)
        x = self.cast(x, w.item)
        rows = x.numel // width
        b = [self.weight(bias)] if bias is not None else []
        y = self.matmul(x, w, rows * wide)
        if b and isinstance(y.node, Node):
            y.node.rule, y.node.targets = self._with_bias(y.node.rule, b[0].size), [
                *y.node.targets, b[0].node,
            ]  # fmt: skip
        return y

    def _with_bias(self, inner: Rule | None, size: int) -> Rule:
        def run(grad: Cell) -> list[Cell | None]:
            assert inner is not None  # noqa: S101 - a node has its rule until it has run
            return [*inner(grad), self.new(size)]

        return run
