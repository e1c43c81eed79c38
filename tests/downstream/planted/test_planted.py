"""Five mistakes that pass on Linux and fail on a Mac: run with --mpskit-machine to see them."""

import numpy as np
import torch
from tiny_trainer import Sums
from torch.utils.data import DataLoader

from mpskit import get_optimal_device


def test_float64():
    weights = torch.from_numpy(np.linspace(0, 1, 8))
    assert weights.to(get_optimal_device().device).sum() == 4


def test_missing_operator():
    matrix = torch.eye(3, device=get_optimal_device().device)
    assert torch.linalg.eig(matrix).eigenvalues.shape == (3,)


def test_device_mix():
    inputs = torch.ones(4, 8, device=get_optimal_device().device)
    mask = torch.ones(8)
    assert (inputs * mask).sum() == 32


def test_unpicklable_dataset():
    dataset = Sums(8)
    dataset.transform = lambda row: row
    assert len(list(DataLoader(dataset, batch_size=4, num_workers=1))) == 2


def test_out_of_memory():
    device = get_optimal_device().device
    # Untouched pages cost nothing on Linux; Metal takes each buffer from the same 8 GiB.
    kept = [torch.empty(1024**3, dtype=torch.uint8, device=device) for _ in range(12)]
    assert len(kept) == 12
