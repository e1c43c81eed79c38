"""What a simulated Mac costs: a GPT-2-small training step, and one dispatched operator.

    OMP_NUM_THREADS=1 python benchmarks/bench_simulation.py

Medians of CPU time: what other programs do on the machine counts little then, and ratios are within
one run. With one thread, so that waiting threads do not count.
"""

from __future__ import annotations

import time

import torch
from results import Column, Plot, Row, Section, Size, Table, median, script

import mpskit

NOTES = (
    (
        "Medians of CPU time, both in turn. The aim: at most 1.3 times the CPU's time on GPT-2 "
        "small, and at most 50 us added for each dispatched operator. No other library simulates a "
        "Mac."
    ),
)


def training_step(device: str, batch: int, length: int):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(use_cache=False)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    tokens = torch.randint(0, 50257, (batch, length)).to(device)

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def small_ops(device: str):
    x = torch.randn(8, 8).to(device)
    y = torch.randn(8, 8).to(device)

    def step() -> None:
        for _ in range(200):
            x.add(y)
            x.mul(2.0)
            x.sum()
            x.t()
            torch.empty_like(x)

    return step


def mlp(device: str):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    model.to(device)
    x = torch.randn(8, 16).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def compare(make, *, steps: int, arguments: tuple = ()) -> tuple[float, float]:
    """Return the median seconds of a step on the CPU and on a simulated Mac, taking turns."""
    on_cpu = make("cpu", *arguments)
    plain: list[float] = []
    simulated: list[float] = []
    on_cpu()
    for _ in range(2):
        plain += [timed(on_cpu) for _ in range(steps)]
        with mpskit.simulate("m3-max-64gb"):
            on_mac = make("mps", *arguments)
            on_mac()
            simulated += [timed(on_mac) for _ in range(steps)]
            del on_mac
    return median(plain), median(simulated)


def operators_of(make, arguments: tuple = ()) -> int:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    step = make("cpu", *arguments)
    step()
    with Count() as counter:
        step()
    return counter.count


def section(size: Size) -> Section:
    """Measure and return the table."""
    cases = [
        ("GPT-2 small, 1 x 128, AdamW", training_step, (1, 128), size.of(1, 4, 8)),
        ("two-layer MLP, SGD", mlp, (), size.of(5, 200, 400)),
        ("five small operators, 200 times", small_ops, (), size.of(1, 5, 20)),
    ]
    rows = []
    for name, make, arguments, steps in cases[size.of(1, 0, 0) :]:
        plain, simulated = compare(make, steps=steps, arguments=arguments)
        count = operators_of(make, arguments)
        values = {
            "who": name, "plain": plain, "simulated": simulated, "ratio": simulated / plain,
            "operators": count, "added": (simulated - plain) / count,
        }  # fmt: skip
        rows.append(Row(values=values, side="ours"))
    table = Table(
        columns=(
            Column(key="who", heading="step"),
            Column(key="plain", heading="on the CPU", unit="seconds"),
            Column(key="simulated", heading="simulated", unit="seconds"),
            Column(key="ratio", heading="ratio", unit="ratio"),
            Column(key="operators", heading="operators", unit="count"),
            Column(key="added", heading="added per operator", unit="seconds"),
        ),
        rows=tuple(rows),
        plot=Plot(column="ratio", title="CPU time on a simulated Mac / the same on the CPU"),
    )
    return Section(
        name="simulation",
        title="What a simulated Mac costs",
        question="How much longer does a step take with coverage, dtypes and memory all checked?",
        command="python benchmarks/bench_simulation.py",
        page="simulation",
        tables=(table,),
        notes=NOTES,
    )


if __name__ == "__main__":
    script(section)
