"""Addresses without memory behind them."""

import mmap

import pytest
import torch

from mpskit._base.sizes import MIB
from mpskit.dispatch import dataless_tensors
from mpskit.dispatch.dataless_tensors import dataless_storage, dataless_tensor, is_dataless


def test_storages_have_addresses_of_their_own():
    one, other = dataless_storage(100), dataless_storage(100)
    assert one.data_ptr() != other.data_ptr()
    assert is_dataless(one)
    assert is_dataless(dataless_tensor((2, 3), (3, 1), torch.float32, 24))
    assert not is_dataless(torch.ones(3))


@pytest.mark.parametrize("refused", [1, 2])
def test_a_smaller_range_is_taken_where_a_large_one_is_refused(refused, monkeypatch):
    asked = []

    def reserve(size):
        asked.append(size)
        if len(asked) <= refused:
            raise OSError("no such range")
        return mmap.mmap(-1, mmap.PAGESIZE)

    monkeypatch.setattr(dataless_tensors, "_reserve", reserve)
    start, end, _ = dataless_tensors._range()
    assert end - start == asked[-1] == min(asked)
    assert len(asked) == refused + 1


def test_without_any_range_it_says_so(monkeypatch):
    def reserve(_):
        raise OSError("no such range")

    monkeypatch.setattr(dataless_tensors, "_reserve", reserve)
    with pytest.raises(MemoryError, match="not even 256 MiB"):
        dataless_tensors._range()


def test_windows_has_one_sort_of_mapping(monkeypatch):
    monkeypatch.delattr(mmap, "MAP_PRIVATE")
    with dataless_tensors._reserve(1 << 40) as owner:
        assert len(owner) == 256 * MIB
