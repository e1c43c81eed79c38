"""Workers are not started; what a Mac's spawn would refuse is said."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import mpskit

pytestmark = pytest.mark.needs_torch("simulation")


class Rows(Dataset):
    """Rows with an attribute that may not be picklable."""

    def __init__(self, extra=None):
        self.extra = extra

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((4,), float(index))


def kinds(loader, passes=1):
    with mpskit.rehearse() as run:
        seen = [[batch.to("mps") for batch in loader] for _ in range(passes)]
        assert all(len(one) == 4 for one in seen)
    return [one.kind for one in run.report.findings]


def test_workers_that_can_be_spawned_are_fine():
    assert kinds(DataLoader(Rows(), batch_size=2, num_workers=2)) == []


def test_what_cannot_be_pickled_stops():
    assert kinds(DataLoader(Rows(lambda: 0), batch_size=2, num_workers=2)) == ["workers"]


def test_workers_that_start_again_are_slow():
    loader = DataLoader(Rows(), batch_size=2, num_workers=2)
    assert kinds(loader, passes=3) == ["workers-restarted"]
    kept = DataLoader(Rows(), batch_size=2, num_workers=2, persistent_workers=True)
    assert kinds(kept, passes=3) == []


def test_no_workers_are_no_matter():
    assert kinds(DataLoader(Rows(lambda: 0), batch_size=2), passes=2) == []
