"""What type checkers must see in the public names; `make types` reads it, nothing runs it."""

from typing import assert_type

import torch

import mpskit
from mpskit import DeviceInfo, MemoryBudget, get_optimal_device, memory_budget_for

device, info = get_optimal_device(policy=("mps", "cpu"))
assert_type(device, torch.device)
assert_type(info, DeviceInfo)
assert_type(info.reason, str)

budget = memory_budget_for(16 * 2**30, "15.6")
assert_type(budget, MemoryBudget)
assert_type(budget.usable_bytes, int | None)

assert_type(mpskit.is_oom(RuntimeError()), bool)
assert_type(mpskit.detect_host().is_mac, bool)


@mpskit.run_with_batch_size(64)
def train(batch_size: int, model: torch.nn.Module, *, epochs: int = 1) -> float:
    """Take the batch size first."""
    return batch_size * float(epochs) * len(list(model.parameters()))


class Trainer:
    """Has a method that is decorated in its class."""

    @mpskit.run_with_batch_size(start=8)
    def fit(self, batch_size: int, data: str) -> str:
        """Take the batch size after self."""
        return data * batch_size


model = torch.nn.Linear(1, 1)
assert_type(train(model, epochs=2), float)
assert_type(train(model, batch_size=4), float)
assert_type(Trainer().fit("data"), str)
assert_type(mpskit.run_with_batch_size(bytes, 4), bytes)
train("not a model")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
Trainer().fit(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
