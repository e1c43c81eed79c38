"""Caps: the right ratio, applied at once, undone by the block, and refused where they cannot hold."""

import gc
import itertools
import resource

import pytest
import torch
from fake_backend import FakeBackend, install

from interrupting import interrupted_at_each_line
from mpskit import limit_memory
from mpskit._base.sizes import GIB, MIB
from mpskit.backends.memory import as_device, backend
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceUnavailableError
from mpskit.host import Readings, detect_host, find_machine
from mpskit.memory import limit as limits
from mpskit.memory.limit import MemoryLimit, high_watermark
from mpskit.system.machine import replace_readings

M1_8GB = 5726633984
HIGH, LOW = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"


@pytest.fixture(autouse=True)
def _no_cap(monkeypatch):
    monkeypatch.setattr(limits, "_caps", {})
    monkeypatch.setattr(limits, "_in_force", {})
    monkeypatch.delenv(HIGH, raising=False)
    monkeypatch.delenv(LOW, raising=False)


@pytest.fixture
def ratios(mps):
    """An 8 GiB M1, and the ratios that its PyTorch was given."""
    mps.recommended = M1_8GB
    replace_readings(find_machine("m1-8gb").readings())
    yield mps.ratios
    replace_readings(None)
    detect_host(refresh=True)


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        ("80%", 0.8 * 8 * GIB),
        (0.8, 0.8 * 8 * GIB),
        ("6GiB", 6 * GIB),
        (6 * GIB, 6 * GIB),
        ("100%", 8 * GIB),
        (M1_8GB, M1_8GB),
    ],
)
def test_a_share_of_the_ram_becomes_a_ratio_of_the_working_set(ratios, limit, size):
    applied = limit_memory(limit, "mps")
    assert ratios == [pytest.approx(size / M1_8GB)]
    assert applied.limit_bytes == pytest.approx(size, abs=2)
    assert applied.ratio == ratios[0]
    assert applied.previous_bytes == int(1.7 * M1_8GB)
    assert (applied.device, applied.kind) == ("mps", "working-set")


def test_80_percent_of_an_8_gib_mac_is_not_080(ratios):
    limit_memory("80%", "mps")
    assert round(ratios[0], 3) == 1.2


def test_the_block_brings_the_previous_cap_back(ratios):
    with limit_memory("6GiB", "mps") as outer:
        assert high_watermark() == outer.ratio
        with limit_memory("4GiB", "mps") as inner:
            assert inner.previous_bytes == pytest.approx(6 * GIB, abs=2)
            assert high_watermark() == inner.ratio
        assert high_watermark() == outer.ratio
    assert high_watermark() == 1.7
    assert ratios[-1] == 1.7


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_that_overlap_leave_no_cap(ratios, order):
    caps = [limit_memory(f"{size}GiB", "mps") for size in (6, 5, 4)]
    in_force = caps[:]
    for index in order:
        caps[index].restore()
        in_force.remove(caps[index])
        assert high_watermark() == (in_force[-1].ratio if in_force else 1.7)
    assert limits._in_force["mps"] == ()


def test_a_cap_that_nobody_restores_is_forgotten_with_its_object(ratios):
    cap = limit_memory("6GiB", "mps")
    ratio = cap.ratio
    del cap
    gc.collect()
    assert high_watermark() == ratio
    assert limits._in_force == {"mps": ()}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_is_undone_whatever_the_body_raises(ratios, error):
    with pytest.raises(error), limit_memory("4GiB", "mps"):
        raise error
    assert ratios[-1] == 1.7


@pytest.mark.parametrize("mine", [ValueError("mine"), None])
def test_what_the_body_raises_wins_over_a_restore_that_fails(ratios, mps, mine):
    def body():
        with limit_memory("4GiB", "mps"):
            mps.refuses_caps = RuntimeError("the driver is gone")
            if mine:
                raise mine

    with pytest.raises((ValueError, RuntimeError)) as caught:
        body()
    notes = getattr(caught.value, "__notes__", [])
    assert "the driver is gone" in str(notes if mine else caught.value)
    assert mine in (None, caught.value)


def test_one_cap_entered_twice_holds_until_the_outer_block_ends(ratios):
    cap = limit_memory("4GiB", "mps")
    with cap:
        with cap:
            pass
        assert high_watermark() == cap.ratio
    assert high_watermark() == 1.7


def test_a_cap_that_was_restored_is_not_entered_in_silence(ratios):
    cap = limit_memory("4GiB", "mps")
    cap.restore()
    with pytest.raises(ArgumentError, match="limit_memory"), cap:
        pass


def test_one_that_was_read_back_changes_nothing(ratios):
    cap = MemoryLimit.model_validate_json(limit_memory("4GiB", "mps").model_dump_json())
    cap.restore()
    assert len(ratios) == 1
    with pytest.raises(ArgumentError, match="limit_memory"), cap:
        pass


def test_it_is_undone_once(ratios):
    applied = limit_memory("4GiB", "mps")
    applied.restore()
    applied.restore()
    assert len(ratios) == 2


@pytest.mark.parametrize(
    ("text", "ratio", "before"),
    [
        ("1.2", 1.2, int(1.2 * M1_8GB)),
        ("1.2GB", 1.2, int(1.2 * M1_8GB)),
        ("0.0", 0.0, None),
        ("garbage", 0.0, None),
    ],
)
def test_the_cap_before_is_the_variables_as_pytorch_parses_it(
    ratios, monkeypatch, text, ratio, before
):
    monkeypatch.setenv(HIGH, text)
    with limit_memory("4GiB", "mps") as applied:
        assert applied.previous_bytes == before
    assert ratios[-1] == ratio


@pytest.mark.parametrize(
    ("limit", "low", "told"),
    [
        ("50%", None, True),
        ("80%", None, True),
        # 1.5 x the working set is above the 1.4 where collection starts.
        ("100%", None, False),
        ("80%", "1.1", False),
        ("50%", "1.1", True),
        ("50%", "0.0", False),
    ],
)
def test_it_says_where_garbage_collection_cannot_start(ratios, monkeypatch, limit, low, told):
    if low is not None:
        monkeypatch.setenv(LOW, low)
    notes = limit_memory(limit, "mps").notes
    assert any("garbage collection" in note for note in notes) is told


def test_it_says_what_is_held_already(ratios, mps):
    mps.reserved = 5 * GIB
    notes = limit_memory("4GiB", "mps").notes
    assert any("5.00 GiB are held already" in note for note in notes)


def test_the_rule_stands_in_where_torch_is_too_old_to_tell(ratios, mps):
    mps.recommended = None
    limit_memory("80%", "mps")
    assert ratios == [pytest.approx(0.8 * 8 * GIB / M1_8GB)]


def test_more_than_twice_a_small_wired_limit_is_refused(ratios, mps):
    mps.recommended = 2 * GIB
    with pytest.raises(ArgumentError, match="twice the working set"):
        limit_memory("6GiB", "mps")
    assert ratios == []


def test_no_interrupt_leaves_a_cap(ratios, monkeypatch):
    host = detect_host()
    monkeypatch.setattr("mpskit.host.detect_host", lambda: host)

    def work():
        with limit_memory("4GiB", "mps"):
            pass

    limit_memory("7GiB", "mps")
    before, left = ratios[-1], []
    for where in interrupted_at_each_line(work):
        if ratios[-1] != before:
            left.append(where.split(":")[-1])
            limits._put(backend(as_device("mps")), before)
        assert limits._lock.acquire(blocking=False)
        limits._lock.release()
    # No Python code can catch an interrupt on the first line of __enter__.
    assert left in ([], ["__enter__"])


BAD = [
    (80, ArgumentError),
    ("80", ArgumentError),
    (0, ArgumentError),
    ("0%", ArgumentError),
    (0.0, ArgumentError),
    (-1, ArgumentError),
    (1.01, ArgumentError),
    ("120%", ArgumentError),
    ("9GiB", ArgumentError),
    (float("nan"), ArgumentError),
    ("lots", ArgumentError),
    ("", ArgumentError),
    (None, ArgumentTypeError),
    (True, ArgumentTypeError),
    (b"1GiB", ArgumentTypeError),
]


@pytest.mark.parametrize(("limit", "error"), BAD)
def test_a_limit_that_cannot_be_used_is_a_typed_error_and_changes_nothing(ratios, limit, error):
    with pytest.raises(error) as caught:
        limit_memory(limit, "mps")
    assert caught.value.given is limit or caught.value.given == limit
    assert ratios == []


def test_a_cap_reads_well(ratios):
    text = str(limit_memory("50%", "mps"))
    assert "mps limited to 4.00 GiB (ratio 0.7500), before: 9.07 GiB" in text


# Cards


@pytest.fixture
def card(monkeypatch):
    fake = install(monkeypatch, FakeBackend("cuda"))
    fake.total, fake.reserved = 24 * GIB, 0
    return fake


@pytest.mark.parametrize(("limit", "ratio"), [("50%", 0.5), ("12GiB", 0.5), (0.25, 0.25)])
def test_a_share_of_a_card(card, limit, ratio):
    with limit_memory(limit, "cuda:1") as applied:
        assert applied.limit_bytes == int(ratio * 24 * GIB)
        with limit_memory("1GiB", "cuda:1") as inner:
            assert inner.previous_bytes == applied.limit_bytes
    assert [device for device, _ in card.caps] == ["cuda:1"] * 4
    assert [round(given, 3) for _, given in card.caps] == [ratio, 0.042, ratio, 1.0]


def test_torchs_own_record_of_the_cap_counts(card):
    card.fraction = 0.75
    with limit_memory("50%", "cuda"):
        pass
    assert card.caps[-1] == ("cuda", 0.75)


@pytest.mark.parametrize("device", ["mps", "cuda", "xpu", "hpu", "meta"])
def test_a_device_that_is_not_here_cannot_be_limited(device, monkeypatch):
    for module in (torch.cuda, getattr(torch, "xpu", None), torch.backends.mps):
        if module is not None:
            monkeypatch.setattr(module, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailableError):
        limit_memory("50%", device)


def test_a_backend_without_a_cap_says_so(monkeypatch):
    fake = install(monkeypatch, FakeBackend("hpu"))
    fake.total, fake.refuses_caps = 24 * GIB, True
    with pytest.raises(DeviceUnavailableError, match="no cap"):
        limit_memory("50%", "hpu")


# The CPU: what real limits did is told by under_limits.py


def test_an_allocation_beyond_the_cpus_cap_fails_cleanly_and_fits_afterwards(under_limits):
    assert under_limits["nested"] == {
        "before": resource.RLIM_INFINITY,
        "outer": 2 * GIB,
        "told": 2 * GIB,
        "previous": None,
        "is_oom": True,
        "inner": GIB,
        "outer again": 2 * GIB,
        "after": resource.RLIM_INFINITY,
        "fits": 3 * GIB,
    }


def test_a_cpus_cap_above_its_hard_limit_is_refused(under_limits):
    seen = under_limits["above_the_hard_limit"]
    kind, text = seen["error"]
    assert kind == "ArgumentError"
    assert "hard" in text
    assert seen["after"] == 4 * GIB


def test_a_bare_number_is_asked_whether_it_is_a_share():
    with pytest.raises(ArgumentError, match="'80%' or '80GiB'"):
        limit_memory("80", "cpu")


def test_no_interrupt_leaves_the_cpus_cap(monkeypatch):
    force, host = [None], detect_host()
    monkeypatch.setattr("mpskit.host.detect_host", lambda: host)
    monkeypatch.setattr(limits, "set_data_limit", force.append)
    monkeypatch.setattr(limits, "can_map", lambda size: False)

    def work():
        with limit_memory("60%", "cpu"):
            pass

    left = [where for where in interrupted_at_each_line(work) if force[-1] is not None]
    assert all(where.endswith(":__enter__") for where in left)
    assert len(left) <= 1


@pytest.mark.needs_torch("estimate")
def test_an_estimates_addresses_are_no_data(under_limits):
    assert under_limits["after_an_estimate"] == [100_000_000, 25_000_000]


def test_a_kernel_that_ignores_the_cap_is_told_and_left_as_it_was(under_limits):
    seen = under_limits["ignored"]
    kind, text = seen["error"]
    assert kind == "DeviceUnavailableError"
    assert "does not enforce" in text
    assert seen["after"] == seen["before"]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_the_cpu_can_be_limited_on_linux_only(monkeypatch, platform):
    monkeypatch.setattr(limits.sys, "platform", platform)
    with pytest.raises(DeviceUnavailableError, match="on Linux only"):
        limit_memory("50%", "cpu")


def test_a_container_is_the_whole_for_the_cpu(monkeypatch):
    monkeypatch.setattr(limits, "set_data_limit", lambda size: None)
    monkeypatch.setattr(limits, "can_map", lambda size: False)
    replace_readings(
        Readings(system="Linux", memory_total=64 * GIB, cgroup={"memory.max": str(8 * GIB)})
    )
    try:
        applied = limit_memory("50%", "cpu")
    finally:
        replace_readings(None)
        detect_host(refresh=True)
    assert applied.limit_bytes == 4 * GIB
    assert isinstance(applied, MemoryLimit)
    assert applied.limit_bytes > 100 * MIB
