"""What a simulated Mac costs: a GPT-2-small training step, and one dispatched operator.

Prints a table of medians of CPU time: what other programs do on the machine counts little then, and
ratios are within one run. Set OMP_NUM_THREADS=1, so that waiting threads do not count.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import mpskit

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 6


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
    return statistics.median(plain), statistics.median(simulated)


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


def main() -> None:
    cases = [
        ("GPT-2 small, 1 x 128, AdamW", training_step, (1, 128), STEPS),
        ("two-layer MLP, SGD", mlp, (), 200),
        ("five small operators", small_ops, (), 5),
    ]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| step | on the CPU, ms | simulated, ms | ratio | operators | us added per operator |")
    print("|---|---|---|---|---|---|")
    for name, make, arguments, steps in cases:
        plain, simulated = compare(make, steps=steps, arguments=arguments)
        operators = operators_of(make, arguments)
        added = (simulated - plain) / operators * 1e6
        print(
            f"| {name} | {plain * 1e3:.2f} | {simulated * 1e3:.2f} | {simulated / plain:.2f} | "
            f"{operators} | {added:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
