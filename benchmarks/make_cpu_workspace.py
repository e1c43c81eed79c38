"""Measures what CPU kernels take for themselves, and writes ``data/cpu_workspace.csv``.

``python benchmarks/make_cpu_workspace.py`` runs convolutions and batch norms of many shapes under
torch's profiler. For each kernel it searches the smallest rule of the form

    max over stages of (a * input + b * weight + c * output + ...)

that does not fall short by more than 5% of the case's own tensors and overshoots least. What a
kernel takes differs by processor; the table is for the CPU only and small on purpose.
"""

from __future__ import annotations

import csv
import itertools
import platform
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mpskit.estimate.trace.workspace import TERMS, kernel_of, sizes_of

TABLE = Path(__file__).parent.parent / "src/mpskit/data/cpu_workspace.csv"
ATEN = torch.ops.aten
MARK = "the measured call"


class Sample(NamedTuple):
    sizes: tuple[int, ...]
    extra: int
    total: int


def extra_bytes(call: Any) -> int:
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


class Conv(NamedTuple):
    shape: tuple[int, ...]
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dilation: int = 1
    transposed: bool = False
    dtype: torch.dtype = torch.float32
    last: bool = False

    def arguments(self) -> tuple[Any, ...]:
        dims = len(self.shape) - 2
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(self.shape))
        x = torch.randn(self.shape, dtype=self.dtype)
        if self.last and layout is not None:
            x = x.to(memory_format=layout)
        channels = (self.shape[1], self.out // self.groups)
        if not self.transposed:
            channels = (self.out, self.shape[1] // self.groups)
        weight = torch.randn(*channels, *[self.kernel] * dims, dtype=self.dtype)
        tail = [self.stride], [self.padding], [self.dilation], self.transposed, [0], self.groups
        return x, weight, None, *[t * dims if isinstance(t, list) else t for t in tail]


def convolutions() -> list[Conv]:
    plain = [
        Conv((16, 3, 112, 112), 64, 7, 2, 3),
        Conv((16, 64, 56, 56), 64, 3, 1, 1),
        Conv((16, 64, 56, 56), 128, 3, 2, 1),
        Conv((8, 64, 56, 56), 256, 1),
        Conv((8, 256, 56, 56), 64, 1),
        Conv((16, 256, 14, 14), 512, 3, 2, 1),
        Conv((16, 512, 7, 7), 512, 3, 1, 1),
        Conv((4, 32, 64, 64), 32, 3, 1, 1),
        Conv((4, 32, 64, 64), 2, 1),
        Conv((4, 3, 64, 64), 64, 3, 1, 1),
        Conv((4, 32, 64, 64), 3, 3, 1, 1),
        Conv((16, 64, 56, 56), 128, 1, 2),
        Conv((8, 96, 56, 56), 192, 2, 2),
    ]
    half = [c._replace(dtype=torch.bfloat16) for c in plain[1:]]
    last = [c._replace(last=True) for c in plain[1:]]
    depth = [
        Conv((8, n, s, s), n, k, 1, k // 2, n)
        for n, s, k in ((96, 56, 7), (192, 28, 7), (32, 112, 3), (384, 14, 3))
    ]
    depth += [c._replace(stride=2) for c in depth[2:]]
    up = [
        Conv((4, 64, 64, 64), 32, 2, 2, transposed=True),
        Conv((4, 128, 32, 32), 64, 2, 2, transposed=True),
        Conv((8, 64, 16, 16), 64, 4, 2, 1, transposed=True),
    ]
    small = [Conv((1, 16, 32, 32), 16, 3, 1, 1), Conv((1, 8, 40, 40), 32, 3, 1, 1)]
    wide = [
        Conv((1, 4, 64, 64), 8, 3, 1, 2, dilation=2, dtype=torch.float64),
        Conv((4, 16, 32, 32), 16, 3, 1, 1, dtype=torch.float64),
    ]
    cubes = [
        Conv((2, 1, 32, 64, 64), 16, 3, 1, 1),
        Conv((2, 16, 16, 32, 32), 32, 3, 1, 1),
        Conv((2, 32, 8, 16, 16), 64, 3, 1, 1),
    ]
    lines = [
        Conv((8, 1, 16000), 64, 16, 8),
        Conv((8, 64, 2000), 128, 3, 1, 1),
        Conv((8, 128, 2000), 1, 16, 8, transposed=True),
    ]
    return plain + half + last + depth + up + small + wide + cubes + lines


def samples() -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for case in convolutions():
        args = case.arguments()
        y = ATEN.convolution(*args)
        gradient = torch.randn_like(y)
        back = (gradient, *args[:2], None, *args[3:], [True, True, False])
        for name, arguments in (("convolution", args), ("convolution_backward", back)):
            call = getattr(ATEN, name).default
            add(found, name, arguments, extra_bytes(lambda: call(*arguments)))  # noqa: B023
    for shape in ((16, 64, 56, 56), (16, 256, 14, 14), (8, 512, 7, 7), (4, 16, 8, 16, 16)):
        x, ones = torch.randn(shape), torch.ones(shape[1])
        mean, variance = torch.zeros(shape[1]), torch.ones(shape[1])
        y, m, v = ATEN.native_batch_norm(x, ones, ones, mean, variance, True, 0.1, 1e-5)
        args = (torch.randn_like(y), x, ones, mean, variance, m, v, True, 1e-5, [True] * 3)
        call = ATEN.native_batch_norm_backward.default
        add(found, "native_batch_norm_backward", args, extra_bytes(lambda: call(*args)))  # noqa: B023
    return found


def add(found: dict[str, list[Sample]], name: str, args: tuple[Any, ...], extra: int) -> None:
    sizes = sizes_of(name, args)
    found[kernel_of(name, args)].append(Sample(sizes, extra, sum(sizes[:3])))


def predicted(stages: tuple[tuple[int, ...], ...], sizes: tuple[int, ...]) -> int:
    return max(sum(c * s for c, s in zip(stage, sizes, strict=True)) for stage in stages)


def cost(stages: tuple[tuple[int, ...], ...], rows: list[Sample]) -> tuple[float, int]:
    """Shortfalls beyond 5% cost most, then what is overshot, then the rule's size."""
    total = 0.0
    for row in rows:
        error = (predicted(stages, row.sizes) - row.extra) / max(row.total, 1)
        total += error if error >= 0 else -error * (1 if error > -0.05 else 100)
    return round(total, 4), sum(abs(c) for s in stages for c in s)


def stage(**coefficients: int) -> tuple[int, ...]:
    return tuple(coefficients.get(term, 0) for term in TERMS)


# The moments at which a kernel can hold most: what it has copied by then, less what of its
# results does not exist yet.
STAGES = [
    *(stage(weight=n) for n in (1, 2, 3)),
    *(stage(input=n) for n in (1, 2)),
    *(stage(output=n) for n in (1, 2, 3)),
    *(stage(input=a, output=b) for a in (1, 2) for b in (1, 2)),
    stage(columns=1),
    stage(weight=1, output=1),
    stage(input=1, weight=1),
    stage(blocked_output=1),
    stage(blocked_output=2),
    stage(blocked_input=2),
    stage(blocked_input=2, output=1),
    stage(blocked_input=1),
    stage(blocked_input=1, input=1),
    *(stage(read_input=n, weight=1, blocked_output=1, output=-1) for n in (1, 2, 3)),
    *(stage(read_input=1, weight=1, blocked_output=n, output=-1) for n in (2, 3)),
    *(stage(blocked_input=n, blocked_output=1, input=-1) for n in (1, 2)),
    *(stage(read_input=1, weight=n, blocked_output=1) for n in (0, 1, 2)),
]


def fitted(rows: list[Sample]) -> tuple[tuple[int, ...], ...]:
    """Return the cheapest one, two or three stages; more only where they are much better."""
    best: tuple[tuple[int, ...], ...] = ()
    for count in (1, 2, 3):
        found = min(itertools.combinations(STAGES, count), key=lambda s: cost(s, rows))
        if not best or cost(found, rows)[0] < cost(best, rows)[0] - 0.01:
            best = found
    return best


def main() -> None:
    rows = []
    for kernel, measured in sorted(samples().items()):
        stages = fitted(measured)
        worst = min((predicted(stages, r.sizes) - r.extra) / r.total for r in measured)
        over = max((predicted(stages, r.sizes) - r.extra) / r.total for r in measured)
        print(f"{kernel:<44}{len(measured):>3} cases, off {worst:+.1%} to {over:+.1%}: {stages}")
        rows += [(kernel, *stage) for stage in stages]
    with TABLE.open("w", newline="") as file:
        processor = platform.processor() or platform.machine()
        file.write(
            f"# made by benchmarks/make_cpu_workspace.py: torch {torch.__version__}, {processor}, "
        )
        file.write(
            f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n"
        )
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kernel", *TERMS))
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
