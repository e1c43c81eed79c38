import re
from pathlib import Path

import pytest
import torch

from mpskit.simulation import events, rng, simulate

MPS = torch.device("mps", 0)


@pytest.fixture(autouse=True)
def mac():
    with simulate("m1-8gb") as machine:
        yield machine


def _public(cls):
    return {name for name in dir(cls) if not name.startswith("_")} - set(dir(object))


def _own(cls):
    return {
        name for base in cls.__mro__ if base.__module__.startswith("mpskit") for name in vars(base)
    }


# What torch's own class answers without looking at the device.
INHERITED = {
    "_Stream": {"device", "device_index", "device_type", "stream_id"},
    "_Event": set(),
    "MpsGenerator": {
        "get_state",
        "set_state",
        "seed",
        "initial_seed",
        "manual_seed",
        # NotImplementedError, as no generator but CUDA's has them
        "graphsafe_get_state",
        "graphsafe_set_state",
        "philox_state",
    },
}


@pytest.mark.parametrize(
    ("simulated", "original"),
    [
        (events._Stream, torch._C.Stream if hasattr(torch._C, "Stream") else None),
        (events._Event, torch._C.Event if hasattr(torch._C, "Event") else None),
        (rng.MpsGenerator, torch._C.Generator),
    ],
)
def test_whatever_stands_for_torch_s_object_has_its_surface(simulated, original):
    original = original or simulated.__base__
    assert issubclass(simulated, original)
    assert _public(original) - _own(simulated) <= INHERITED[simulated.__name__]


def test_every_binding_of_this_torch_for_the_mac_is_simulated():
    root = Path(torch.__file__).parent
    texts = [(root / "_C" / "__init__.pyi").read_text("utf-8")]
    for folder in ("mps", "accelerator", "backends/mps"):
        texts += [path.read_text("utf-8") for path in (root / folder).rglob("*.py")]
    names = set(re.findall(r"\b_mps_\w+|\b_accelerator_[a-z]\w+", "\n".join(texts)))
    simulated = {
        name
        for name in names
        if getattr(getattr(torch._C, name, None), "__module__", "torch").startswith("mpskit")
    }
    # The allocator's text settings belong to no device.
    assert {name for name in names - simulated if "AllocatorSettings" not in name} == set()


def test_the_time_between_events_that_were_not_recorded():
    event = torch.mps.Event(enable_timing=True)
    event.record()
    assert event.query()
    with pytest.raises(RuntimeError, match="must be recorded"):
        event.elapsed_time(torch.mps.Event(enable_timing=True))


def test_events_and_streams_of_torch():
    stream = torch.Stream(device="mps")
    assert stream.device == MPS
    assert isinstance(stream, torch.Stream)
    assert stream.query()
    assert not stream.is_capturing()
    with stream:
        assert torch.accelerator.current_stream() == stream
    assert torch.accelerator.current_stream().stream_id == 0
    start, end = stream.record_event(), torch.Event("mps", enable_timing=True)
    end.record(stream)
    stream.wait_event(end)
    stream.wait_stream(torch.accelerator.current_stream())
    assert start.elapsed_time(end) >= 0
    assert "mps" in repr(end)
    assert issubclass(type(end), torch.Event)
    with pytest.raises(RuntimeError, match="native handle"):
        stream.native_handle()
    with pytest.raises(NotImplementedError, match="ipc"):
        end.ipc_handle()


@pytest.mark.skipif(not hasattr(torch.mps, "Stream"), reason="torch.mps.Stream is new in 2.15")
def test_streams_of_torch_mps():
    assert torch.mps.current_stream() == torch.mps.default_stream()
    stream = torch.mps.Stream()
    assert stream.stream_id in range(1, 33)
    with torch.mps.stream(stream):
        assert torch.mps.current_stream().stream_id == stream.stream_id
        assert (
            repr(torch.mps.current_stream()) == f"<torch.mps.Stream stream_id={stream.stream_id}>"
        )
    assert torch.mps.current_stream() == torch.mps.default_stream()
    assert {torch.mps.Stream().stream_id for _ in range(64)} == set(range(1, 33))
    torch.mps.Event().record()


def test_the_offset_of_a_generator():
    generator = torch.Generator("mps")
    assert generator.get_offset() == 0
    generator.set_offset(4)
    assert generator.get_offset() == 4
    generator.manual_seed(1)
    assert generator.get_offset() == 0
    with pytest.raises(NotImplementedError):
        generator.graphsafe_get_state()


def test_an_event_of_the_cpu_is_torch_s_own():
    event = torch.Event("cpu")
    assert not isinstance(event, events._Event)
    assert event.device.type == "cpu"
