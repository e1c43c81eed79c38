"""What convolutions take on this CPU while they run, against the rules of the estimator.

``python benchmarks/conv_workspace.py [--threads N ...] [--count N] [--seed N] [--dtype NAME]
[--last] [--worst]``

Draws random convolutions of 1 to 3 dimensions (plain, strided, dilated, grouped, depthwise,
transposed, pointwise, with few channels), runs each one forward and backward, and compares the most
that torch's CPU allocator held beyond the results (the profiler's ``[memory]`` events) with the low
and the high figure of ``mpskit.estimate.trace.workspace``. An error is a share of the call's own
peak: its operands, results and workspace. To measure another instruction set on a larger processor:
``ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mpskit.estimate.trace.workspace import cpu_op_memory

ATEN = torch.ops.aten
MARK = "the measured call"
CHANNELS = (8, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768)
KERNELS = {1: (1, 2, 3, 4, 5, 7, 9, 10, 15, 16, 31, 64, 128), 2: (1, 2, 3, 3, 3, 4, 5, 7, 11)}
KINDS = ("plain", "strided", "dilated", "grouped", "depthwise", "transposed", "transposed grouped")
KINDS += ("pointwise", "few inputs", "few outputs")
LONGEST = {1: 4000, 2: 112, 3: 32}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Drawn(NamedTuple):
    """One convolution; the numbers hold for every dimension."""

    kind: str
    batch: int
    inputs: int
    outputs: int
    sizes: tuple[int, ...]
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def transposed(self) -> bool:
        return self.kind.startswith("transposed")

    @property
    def results(self) -> list[int]:
        reach = self.dilation * (self.kernel - 1) + 1 - 2 * self.padding
        if self.transposed:
            return [(n - 1) * self.stride + reach for n in self.sizes]
        return [(n - reach) // self.stride + 1 for n in self.sizes]

    def usable(self) -> bool:
        """Return whether it exists, and is neither tiny nor slow to run."""
        if min(self.results) < 1:
            return False
        ends = math.prod(self.sizes), math.prod(self.results)
        elements = self.batch * max(self.inputs * ends[0], self.outputs * ends[1])
        taps = self.kernel ** len(self.sizes) * self.inputs // self.groups
        work = self.batch * self.outputs * taps * ends[0 if self.transposed else 1]
        return 30_000 < elements < 2_500_000 and work < 100_000_000

    def arguments(self, dtype: torch.dtype, *, last: bool) -> tuple[Any, ...]:
        dims = len(self.sizes)
        x = torch.randn(self.batch, self.inputs, *self.sizes, dtype=dtype)
        sides = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        shape = (sides[0], sides[1] // self.groups, *[self.kernel] * dims)
        weight = torch.randn(shape, dtype=dtype)
        if last and dims > 1:
            x, weight = (t.contiguous(memory_format=LAST[dims + 2]) for t in (x, weight))
        listed = [[n] * dims for n in (self.stride, self.padding, self.dilation)]
        return x, weight, None, *listed, self.transposed, [0] * dims, self.groups


def draw(choose: random.Random) -> Iterator[Drawn]:
    """Yield usable convolutions without end."""
    while True:
        drawn = one(choose)
        if drawn.usable():
            yield drawn


def one(choose: random.Random) -> Drawn:
    dims, kind = choose.choice((1, 1, 2, 2, 2, 3)), choose.choice(KINDS)
    inputs, outputs = choose.choice(CHANNELS), choose.choice(CHANNELS)
    kernel = choose.choice(KERNELS.get(dims, (1, 2, 3, 3, 3, 5)))
    stride = dilation = groups = 1
    if kind == "strided":
        stride = choose.choice((2, 2, 3, 4, 5, 8))
    elif kind == "dilated":
        dilation, kernel = choose.choice((2, 3, 4, 8)), max(kernel, 2)
    elif kind == "depthwise":
        groups, outputs = inputs, inputs * choose.choice((1, 1, 1, 2))
        stride, dilation, kernel = (
            choose.choice((1, 1, 2)),
            choose.choice((1, 1, 2)),
            max(kernel, 2),
        )
    elif kind == "pointwise":
        kernel, stride = 1, choose.choice((1, 1, 1, 2))
    elif kind == "few inputs":
        inputs, stride = choose.choice((1, 2, 3, 3, 4, 5, 6)), choose.choice((1, 2, 4))
    elif kind == "few outputs":
        outputs = choose.choice((1, 2, 3, 4, 5, 10, 17, 21))
    if kind.endswith("grouped"):
        groups, each = (
            choose.choice((2, 3, 4, 8, 16, 32)),
            choose.choice((1, 2, 3, 4, 8, 12, 16, 32, 48)),
        )
        inputs, outputs = groups * each, groups * choose.choice((each, each, 1, 4, 16, 64))
        stride = choose.choice((1, 1, 2))
    if kind.startswith("transposed"):
        stride = choose.choice((1, 2, 2, 4, 8))
        kernel = choose.choice((kernel, stride, 2 * stride))
    same = dilation * (kernel - 1)
    paddings = (
        (0, kernel // 4) if kind.startswith("transposed") else (0, same // 2, kernel // 2, same)
    )
    span = math.log(6), math.log(LONGEST[dims])
    sizes = [max(4, int(math.exp(choose.uniform(*span)))) for _ in range(dims)]
    if choose.random() < 0.7:
        sizes = sizes[:1] * dims
    batch = choose.choice((1, 1, 2, 2, 3, 4, 8, 16))
    padding = choose.choice(paddings)
    return Drawn(
        kind, batch, inputs, outputs, tuple(sizes), kernel, stride, padding, dilation, groups
    )


def extra_bytes(call: Callable[[], Any]) -> int:
    """Return the most that a call held beyond what it returned."""
    call()
    watch = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with watch as prof, record_function(MARK):
        result = call()
    assert prof.profiler is not None
    events = prof.profiler.kineto_results.events()
    mark = next(e for e in events if e.name() == MARK)
    memory = sorted(
        (e.start_ns(), e.nbytes())
        for e in events
        if e.name() == "[memory]" and mark.start_ns() <= e.start_ns() <= mark.end_ns()
    )
    live = list(itertools.accumulate(size for _, size in memory))
    del result
    return max(live) - live[-1]


class Row(NamedTuple):
    low: float
    high: float
    drawn: Drawn
    name: str
    measured: int
    rule: Any


def measured(drawn: Drawn, dtype: torch.dtype, *, last: bool) -> Iterator[Row]:
    rules = cpu_op_memory()
    args = drawn.arguments(dtype, last=last)
    result = ATEN.convolution.default(*args)
    gradient = torch.randn_like(result)
    back = (gradient, *args[:2], None, *args[3:], [True, True, False])
    own = sum(t.numel() * t.element_size() for t in (*args[:2], result))
    given = sum(t.numel() * t.element_size() for t in args[:2])
    for name, arguments, bytes_ in (
        ("convolution", args, own),
        ("convolution_backward", back, own + given),
    ):
        call = getattr(ATEN, name).default
        extra = extra_bytes(lambda: call(*arguments))  # noqa: B023
        rule = rules[name](arguments, True)
        high = max(rule.workspace_bytes, rule.workspace_high_bytes)
        peak = bytes_ + extra
        yield Row(
            (rule.workspace_bytes - extra) / peak, (high - extra) / peak, drawn, name, extra, rule
        )


def report(rows: list[Row], threads: int) -> None:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[f"{len(row.drawn.sizes)}-D {row.drawn.kind}"].append(row)
    for name, found in [*sorted(groups.items()), ("all", rows)]:
        low, high = sorted(r.low for r in found), sorted(r.high for r in found)
        within = sum(abs(error) <= 0.03 for error in low) / len(low)
        print(
            f"| {name} | {threads} | {len(found)} | {within:.0%} | {low[0]:+.1%} to {low[-1]:+.1%} "
            f"| {high[0]:+.1%} | {statistics.median(high):+.1%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--last", action="store_true", help="channels-last tensors")
    parser.add_argument("--worst", action="store_true", help="show calls above the high figure")
    arguments = parser.parse_args()
    print(
        "| convolutions | threads | calls | low within 3% | low is off by | high, least | median |"
    )
    print("|---" * 7 + "|")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        rows: list[Row] = []
        for drawn in itertools.islice(draw(random.Random(arguments.seed)), arguments.count):
            dtype = getattr(torch, arguments.dtype)
            rows += measured(drawn, dtype, last=arguments.last)
        report(rows, threads)
        for row in rows if arguments.worst else ():
            if row.high < -0.005:
                print(row)


if __name__ == "__main__":
    main()
