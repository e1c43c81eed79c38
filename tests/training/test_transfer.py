"""to_device: every structure keeps its type, nothing is half-changed, MPS gets what it can hold."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from mpskit import simulate, to_device
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceUnavailableError, PrecisionWarning
from mpskit.training.transfer import copy_is_asynchronous


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(DeviceUnavailableError, match=f"{device} cannot be used here") as caught:
        to_device([torch.zeros(2)], device)
    assert isinstance(caught.value.__cause__, (RuntimeError, AssertionError))


META = torch.device("meta")


class Point(NamedTuple):
    x: object
    y: object


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str = "frozen"


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    derived: torch.Tensor = field(init=False)

    def __post_init__(self):
        self.derived = self.x + 1


class InPlace:
    """As torch_geometric's Data: its ``to`` changes itself and returns itself."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        self.x = self.x.to(device)
        return self


class Asks:
    """Remembers what it was asked for."""

    def __init__(self):
        self.calls = []

    def to(self, device, non_blocking=False):
        self.calls.append((str(device), non_blocking))
        return self


def ones():
    return torch.ones(2)


def counted():
    counts = Counter()
    counts["x"] = ones()
    return counts


@pytest.mark.parametrize(
    ("batch", "get"),
    [
        (ones(), lambda b: b),
        ([ones(), 1], lambda b: b[0]),
        ((ones(), "a"), lambda b: b[0]),
        (Point(ones(), None), lambda b: b.x),
        ({"x": ones(), "n": 3}, lambda b: b["x"]),
        (OrderedDict(x=ones()), lambda b: b["x"]),
        (defaultdict(list, x=ones()), lambda b: b["x"]),
        (counted(), lambda b: b["x"]),
        (UserDict(x=ones()), lambda b: b["x"]),
        (MappingProxyType({"x": ones()}), lambda b: b["x"]),
        (deque([ones()], maxlen=3), lambda b: b[0]),
        ({"deep": [({"x": ones()},)]}, lambda b: b["deep"][0][0]["x"]),
        (Frozen(ones()), lambda b: b.x),
        (Slotted(ones()), lambda b: b.derived),
        (torch.max(torch.ones(2, 2), dim=0), lambda b: b.values),
        (pack_sequence([torch.ones(3), torch.ones(2)]), lambda b: b.data),
        (InPlace(ones()), lambda b: b.x),
        (frozenset([ones()]), lambda b: next(iter(b))),
    ],
    ids=lambda value: type(value).__name__ if not callable(value) else "",
)
def test_each_structure_is_moved_and_keeps_its_type(batch, get):
    moved = to_device(batch, "meta")
    assert type(moved) is type(batch)
    assert get(moved).device == META
    assert get(batch).device.type == "cpu"


def test_what_a_type_carries_besides_is_kept():
    batch = defaultdict(list, x=ones())
    assert to_device(batch, "meta")["new"] == []
    assert to_device(deque([ones()], maxlen=3), "meta").maxlen == 3
    assert to_device(Frozen(ones(), "n"), "meta").name == "n"


def test_packed_sequences_keep_their_batch_sizes_on_the_cpu():
    packed = pack_sequence([torch.ones(2), torch.ones(3)], enforce_sorted=False)
    moved = to_device(packed, "meta")
    assert moved.batch_sizes.device.type == "cpu"
    assert moved.sorted_indices.device == META


@pytest.mark.parametrize(
    "batch",
    [
        ones(),
        [ones(), 1],
        {"x": (ones(), "text")},
        Point(1, ones()),
        Frozen(ones()),
        OrderedDict(x=ones()),
        "text",
        None,
        3.5,
        Frozen,
        object(),
        SimpleNamespace(x=ones()),
        torch.Size([1, 2]),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_what_needs_no_move_is_returned_itself(batch):
    assert to_device(batch, "cpu") is batch


def test_one_tensor_at_two_places_is_moved_once():
    shared = ones()
    moved = to_device({"a": shared, "b": [shared]}, "meta")
    assert moved["a"] is moved["b"][0]


def test_a_hugging_face_batch_keeps_its_type_and_its_source():
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": torch.ones(1, 2, dtype=torch.long)})
    moved = to_device(batch, "meta")
    assert type(moved) is transformers.BatchEncoding
    assert moved["input_ids"].device == META
    assert batch["input_ids"].device.type == "cpu"
    output = transformers.modeling_outputs.CausalLMOutput(logits=torch.ones(1, 2))
    assert to_device(output, "meta").logits.device == META
    assert output.logits.device.type == "cpu"


def test_a_module_is_moved_as_torch_does_it():
    module = torch.nn.Linear(2, 2)
    assert to_device(module, "meta") is module
    assert module.weight.device == META


def test_a_failing_move_leaves_the_input_alone():
    class Broken:
        def to(self, device):
            raise RuntimeError("no")

    batch = {"a": ones(), "b": [ones(), Broken()]}
    before = copy.copy(batch)
    with pytest.raises(RuntimeError, match="no"):
        to_device(batch, "meta")
    assert batch == before
    assert batch["a"].device.type == "cpu"


def test_a_batch_that_contains_itself():
    batch: list = [ones()]
    batch.append(batch)
    with pytest.raises(ArgumentError, match="contains itself"):
        to_device(batch, "meta")


@pytest.mark.parametrize(
    ("source", "target", "pinned", "asked", "expected"),
    [
        ("cpu", "cuda", True, None, True),
        ("cpu", "cuda", True, True, True),
        ("cpu", "cuda", True, False, False),
        ("cpu", "cuda", False, None, False),
        ("cpu", "cuda", False, True, False),
        ("cpu", "xpu", True, None, True),
        ("cuda", "cuda", False, True, True),
        ("cuda", "cuda", False, None, False),
        ("cuda", "cpu", False, True, False),
        ("cpu", "mps", True, True, False),
        ("cpu", "mps", False, None, False),
        ("mps", "cpu", False, True, False),
        ("mps", "mps", False, True, False),
        ("cpu", "cpu", False, True, False),
    ],
)
def test_asynchronous_copies_only_where_they_are_safe(source, target, pinned, asked, expected):
    assert copy_is_asynchronous(source, target, pinned=pinned, asked=asked) is expected


def test_other_objects_are_told_non_blocking_only_if_they_take_it():
    asks = Asks()
    to_device([asks], "meta", non_blocking=True)
    assert asks.calls == [("meta", True)]
    assert to_device([InPlace(ones())], "meta", non_blocking=True)[0].x.device == META


@pytest.mark.parametrize("bad", [1, "yes"])
def test_non_blocking_of_the_wrong_type(bad):
    with pytest.raises(ArgumentTypeError) as caught:
        to_device(ones(), "cpu", non_blocking=bad)
    assert caught.value.given is bad


def test_devices_that_are_none():
    with pytest.raises(ArgumentError):
        to_device(ones(), "toaster")
    with pytest.raises(ArgumentTypeError):
        to_device(ones(), 3.5)


@pytest.fixture
def mac():
    with simulate("m1-8gb") as machine:
        yield machine


def test_on_mps_64_bit_numbers_are_narrowed_with_one_warning(mac):
    batch = {
        "x": torch.ones(2, dtype=torch.float64),
        "z": [torch.ones(2, dtype=torch.complex128), torch.ones(2, dtype=torch.float64)],
        "ids": torch.ones(2, dtype=torch.int64),
    }
    with pytest.warns(PrecisionWarning) as caught:
        moved = to_device(batch, "mps")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "2 float64" in str(caught[0].message)
    assert "1 complex128" in str(caught[0].message)
    assert moved["x"].dtype is torch.float32
    assert moved["z"][0].dtype is torch.complex64
    assert moved["ids"].dtype is torch.int64
    assert {moved["x"].device.type, moved["z"][0].device.type, moved["ids"].device.type} == {"mps"}
    assert batch["x"].dtype is torch.float64


def test_on_mps_a_packed_sequence_is_narrowed_too(mac):
    packed = pack_sequence([torch.ones(2, dtype=torch.float64)])
    with pytest.warns(PrecisionWarning, match="1 float64"):
        moved = to_device(packed, "mps")
    assert (moved.data.device.type, moved.data.dtype) == ("mps", torch.float32)


def test_on_mps_float32_gives_no_warning_and_non_blocking_is_off(mac):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_device([ones()], "mps", non_blocking=True)[0].device.type == "mps"


def test_on_mps_a_64_bit_module_is_refused_before_anything_changes(mac):
    module = torch.nn.Linear(2, 2).double()
    with pytest.raises(ArgumentError, match=r"module\.float"):
        to_device([module], "mps")
    assert module.weight.device.type == "cpu"


_leaves = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.builds(ones),
    st.builds(lambda: torch.zeros(1, dtype=torch.int32)),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Frozen, inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
    ),
    max_leaves=12,
)


def _leaves_of(tree):
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves_of(value)]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in _leaves_of(value)]
    return _leaves_of(tree.x) if isinstance(tree, Frozen) else [tree]


def _shape_of(tree):
    if isinstance(tree, dict):
        return {key: _shape_of(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return (type(tree), [_shape_of(value) for value in tree])
    return (Frozen, _shape_of(tree.x)) if isinstance(tree, Frozen) else type(tree)


@given(_trees)
def test_any_nesting_keeps_its_shape_and_moves_every_tensor(tree):
    moved = to_device(tree, "meta")
    assert _shape_of(moved) == _shape_of(tree)
    for before, after in zip(_leaves_of(tree), _leaves_of(moved), strict=True):
        if isinstance(before, torch.Tensor):
            assert (after.device, before.device.type) == (META, "cpu")
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
        else:
            assert after is before
    assert to_device(tree, "cpu") is tree
