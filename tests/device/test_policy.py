"""Who wins: a table of requests, and the invariants that hold for every request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.device import ReasonCode
from mpskit.device.codes import Basis
from mpskit.device.policy import Request, decide
from mpskit.device.status import BackendStatus
from mpskit.errors import DeviceUnavailableError


def _status(name, usable, count=1, code=ReasonCode.NOT_BUILT):
    return BackendStatus(
        device=name, built=usable, available=usable, usable=usable, count=count if usable else 0,
        code=None if usable else code, reason="" if usable else "it is not there", fix="mend it",
    )  # fmt: skip


CPU = BackendStatus(device="cpu", built=True, available=True, usable=True, count=1)
MAC = [_status("cuda", False), _status("mps", True), CPU]
BOX = [_status("cuda", True, 2), _status("mps", False), CPU]
PLAIN = [_status("cuda", False), _status("mps", False), CPU]
BOTH = [_status("cuda", True), _status("mps", True), CPU]
INTEL_GPU = [*PLAIN[:2], _status("xpu", True), CPU]

TABLE = [
    # request, statuses, device, basis
    (Request(), MAC, "mps", Basis.DEFAULT),
    (Request(), BOX, "cuda:0", Basis.DEFAULT),
    (Request(local_rank=1), BOX, "cuda:1", Basis.DEFAULT),
    (Request(local_rank=1), MAC, "mps", Basis.DEFAULT),
    (Request(), PLAIN, "cpu", Basis.DEFAULT),
    (Request(), BOTH, "cuda:0", Basis.DEFAULT),
    (Request(), INTEL_GPU, "xpu:0", Basis.DEFAULT),
    (Request(use_gpu=False), MAC, "cpu", Basis.FORCED),
    (Request(use_gpu=False, force_mps=True), MAC, "cpu", Basis.FORCED),
    (Request(force_mps=True), BOTH, "mps", Basis.FORCED),
    (Request(force_mps=True), BOX, "cuda:0", Basis.DEFAULT),
    (Request(force_mps=True, device="cpu"), MAC, "mps", Basis.FORCED),
    (Request(force_mps=True, policy="conservative"), MAC, "mps", Basis.FORCED),
    (Request(device="cpu"), MAC, "cpu", Basis.FORCED),
    (Request(device="cuda:1"), BOX, "cuda:1", Basis.FORCED),
    (Request(device="cuda:7"), BOX, "cuda:0", Basis.DEFAULT),
    (Request(device="cuda"), MAC, "mps", Basis.DEFAULT),
    (Request(device="cpu", policy=("mps",)), MAC, "cpu", Basis.FORCED),
    (Request(policy="conservative"), MAC, "cpu", Basis.DEFAULT),
    (Request(policy="conservative"), BOTH, "cuda:0", Basis.DEFAULT),
    (Request(policy="auto", env_policy="conservative"), MAC, "mps", Basis.DEFAULT),
    (Request(env_policy="conservative"), MAC, "cpu", Basis.DEFAULT),
    (Request(policy=("mps", "cuda", "cpu")), BOTH, "mps", Basis.FORCED),
    (Request(policy=("cpu", "mps")), MAC, "cpu", Basis.FORCED),
    (Request(policy=("cuda",)), MAC, "cpu", Basis.FORCED),
]


@pytest.mark.parametrize(("request_", "statuses", "device", "basis"), TABLE)
def test_who_wins(request_, statuses, device, basis):
    decision = decide(request_, statuses, apple_silicon=statuses in (MAC, BOTH))
    assert (decision.device, decision.basis) == (device, basis)


def test_the_conservative_rule_is_for_apple_silicon_only():
    assert decide(Request(policy="conservative"), MAC, apple_silicon=False).device == "mps"


@pytest.mark.parametrize(
    ("request_", "lost", "winner"),
    [
        (Request(use_gpu=False, force_mps=True), "mps", "use_gpu=False"),
        (Request(force_mps=True, device="cpu"), "cpu", "force_mps=True"),
        (Request(device="mps", policy=("cpu",)), "cpu", "MPSKIT_DEVICE=mps"),
        (Request(policy="auto", env_policy="conservative"), "cpu", "policy=auto"),
    ],
)
def test_a_request_that_lost_is_told(request_, lost, winner):
    decision = decide(request_, MAC, apple_silicon=True)
    told = [r for r in decision.rejected if r.code is ReasonCode.OUTRANKED]
    assert [r.device for r in told] == [lost]
    assert winner in told[0].reason


@pytest.mark.parametrize(
    ("request_", "statuses", "named", "code"),
    [
        (Request(force_mps=True), PLAIN, "mps", ReasonCode.NOT_BUILT),
        (Request(device="cuda:7"), BOX, "cuda:7", ReasonCode.NO_SUCH_INDEX),
        (Request(device="hpu"), MAC, "hpu", ReasonCode.NO_DEVICE),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_a_fallback(request_, statuses, named, code):
    decision = decide(request_, statuses, apple_silicon=False)
    assert (decision.blocked.device, decision.blocked.code) == (named, code)
    assert named in decision.fallback
    assert ": using " in decision.fallback
    assert ": using " not in decision.refusal
    assert decision.blocked in decision.rejected


def test_a_card_that_was_asked_for_and_lost_is_told():
    decision = decide(Request(force_mps=True, device="cuda:1"), BOTH, apple_silicon=False)
    told = [r.device for r in decision.rejected if r.code is ReasonCode.OUTRANKED]
    assert (decision.device, told) == ("mps", ["cuda:1"])
    for device in ("cuda:0", "cuda:1"):
        same = decide(Request(force_mps=True, device=device), BOX, apple_silicon=False)
        assert same.device == device
        assert ReasonCode.OUTRANKED not in [r.code for r in same.rejected]


@pytest.mark.parametrize(
    ("request_", "statuses", "device", "basis", "reason"),
    [
        (Request(device="cuda", policy="conservative"), MAC, "cpu", Basis.DEFAULT, "on the CPU"),
        (Request(device="cuda", env_policy="conservative"), MAC, "cpu", Basis.DEFAULT, "the CPU"),
        (Request(device="xpu", policy=("cpu", "mps")), MAC, "cpu", Basis.FORCED, "policy=cpu,mps"),
        (Request(force_mps=True, device="cuda:1"), BOX, "cuda:1", Basis.FORCED, "=cuda:1 asks"),
        (Request(force_mps=True, policy=("xpu",)), BOX, "cpu", Basis.FORCED, "policy=xpu"),
        (Request(device="cuda"), MAC, "mps", Basis.DEFAULT, "the Mac's GPU can be used"),
    ],
)
def test_where_a_named_device_cannot_be_used_the_next_wish_counts(
    request_, statuses, device, basis, reason
):
    decision = decide(request_, statuses, apple_silicon=statuses is MAC)
    assert (decision.device, decision.basis) == (device, basis)
    assert reason in decision.reason
    assert "cannot be used" in decision.reason
    assert f"using {device.split(':')[0]}" in decision.fallback
    assert "using" not in decision.refusal


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Request(use_gpu=False), ReasonCode.GPU_NOT_WANTED),
        (Request(device="cpu"), ReasonCode.LOWER_PRIORITY),
        (Request(policy="conservative"), ReasonCode.CONSERVATIVE_POLICY),
        (Request(policy=("cpu",)), ReasonCode.NOT_IN_ORDER),
        (Request(policy=("cpu", "mps")), ReasonCode.LOWER_PRIORITY),
    ],
)
def test_why_the_gpu_was_not_used(request_, code):
    decision = decide(request_, MAC, apple_silicon=True)
    assert {r.device: r.code for r in decision.rejected}["mps"] is code


@pytest.mark.parametrize(
    ("request_", "statuses", "reason", "advice"),
    [
        (Request(), PLAIN, "no accelerator can be used here", None),
        (Request(), MAC, "the Mac's GPU can be used", "Small models"),
        (Request(), BOX, "cuda can be used and comes first", None),
        (Request(policy="conservative"), MAC, "on the CPU on Apple silicon", "favour MPS"),
        (Request(policy="conservative"), PLAIN, "on the CPU on Apple silicon", None),
        (Request(device="mps"), MAC, "MPSKIT_DEVICE=mps asks for it", None),
    ],
)
def test_what_is_said_of_the_choice(request_, statuses, reason, advice):
    decision = decide(request_, statuses, apple_silicon=True)
    assert reason in decision.reason
    assert [advice in line for line in decision.advice] == ([True] if advice else [])


def test_a_rank_without_a_card_is_an_error():
    with pytest.raises(
        DeviceUnavailableError, match="LOCAL_RANK=2 but this machine has 2"
    ) as caught:
        decide(Request(local_rank=2), BOX, apple_silicon=False)
    assert caught.value.given == 2


_NAMES = st.sampled_from(["cpu", "mps", "cuda", "xpu"])
_POLICIES = st.none() | st.sampled_from(["auto", "conservative"])
_POLICIES |= st.lists(_NAMES, min_size=1, unique=True).map(tuple)
_REQUESTS = st.builds(
    Request, st.booleans(), st.booleans(), st.none() | _NAMES, _POLICIES, _POLICIES, st.none()
)


@given(_REQUESTS, st.booleans(), st.booleans(), st.booleans())
def test_whatever_is_asked_the_choice_is_usable_and_the_rest_is_explained(request_, cuda, mps, mac):
    statuses = [_status("cuda", cuda), _status("mps", mps), CPU]
    decision = decide(request_, statuses, apple_silicon=mac)
    chosen = decision.device.split(":")[0]
    assert {status.device: status.usable for status in statuses}[chosen]
    explained = {rejected.device.split(":")[0] for rejected in decision.rejected}
    assert {"cuda", "mps", "cpu"} - {chosen} <= explained
    assert (decision.blocked is None) == (decision.fallback is None)
    if not request_.use_gpu:
        assert chosen == "cpu"
