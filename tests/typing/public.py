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
