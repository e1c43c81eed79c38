"""as_host: one way to name a machine, for every rule that takes ``machine=``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpskit
from mpskit.errors import ArgumentError, ArgumentTypeError, UnknownMachineError
from mpskit.estimate.result import MemoryEstimate
from mpskit.host import Host, Machine, Readings, find_machine
from mpskit.host.cuda_cards import cuda_cards
from mpskit.host.named import as_host, given_host, host_device

LINUX = Host.from_readings(Readings(system="Linux", memory_total=8 << 30, logical_cpus=6))
MAC = Machine(chip="M3 Max", ram_gib=64)
ESTIMATE = MemoryEstimate(
    device="mps", torch_version="2.13.0", parameters_bytes=1, peak_bytes=1 << 30, driver_bytes=1
)


@pytest.mark.parametrize(
    ("machine", "summary", "device"),
    [
        ("m1-16gb", "M1, 16.00 GiB, macOS 15.6", "mps"),
        ("M3 Max 64GB", "M3 Max, 64.00 GiB, macOS 15.6", "mps"),
        (MAC, "M3 Max, 64.00 GiB, macOS 15.6", "mps"),
        (Host.from_readings(MAC.readings()), "M3 Max, 64.00 GiB, macOS 15.6", "mps"),
        ("github-macos-15-vm", "M1, 7.00 GiB, macOS 15.6", "mps"),
        ("rosetta-m2-16gb", None, "cpu"),
        ("intel-mac-32gb", None, "cpu"),
        ("intel-mac-amd-32gb", None, "mps"),
        (Machine(chip="M1", ram_gib=16, macos="12.0"), "M1, 16.00 GiB, macOS 12.0", "cpu"),
        (LINUX, None, "cpu"),
        ("T4", "T4, 14.56 GiB", "cuda"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090, 23.68 GiB", "cuda"),
    ],
)
def test_what_names_a_machine(machine, summary, device):
    host = as_host(machine)
    assert summary is None or host.summary == summary
    assert host_device(host) == device
    assert host_device(host, "cpu") == "cpu"


def test_a_host_is_returned_as_it_is():
    assert as_host(LINUX) is LINUX
    assert given_host(None, None) is None
    assert given_host(None, LINUX) is given_host(LINUX) is LINUX


@pytest.mark.parametrize("wrong", [3, 1.5, b"m1-8gb", ["m1-8gb"], Readings()])
def test_what_names_no_machine(wrong):
    with pytest.raises(ArgumentTypeError, match="m1-16gb"):
        as_host(wrong)


@pytest.mark.parametrize(
    ("name", "near"),
    [("m1-17gb", "m1-16gb"), ("RTX 3091", "RTX 3090"), ("T40", "T4"), ("", "A100")],
)
def test_an_unknown_name_is_told_near_ones(name, near):
    with pytest.raises(UnknownMachineError, match=near) as caught:
        as_host(name)
    assert caught.value.given == name


@given(st.text())
def test_any_text_is_a_machine_or_an_error_of_ours(text):
    try:
        assert isinstance(as_host(text), Host)
    except UnknownMachineError as error:
        assert error.given == text


def test_a_device_that_the_machine_lacks():
    for machine, device in (("m1-8gb", "cuda"), ("T4", "mps"), ("intel-mac-32gb", "mps")):
        with pytest.raises(ArgumentError, match=device):
            host_device(as_host(machine), device)


@pytest.mark.parametrize("name", [card.name for card in cuda_cards().values()])
def test_every_card_is_a_machine(name):
    host = as_host(name)
    assert host.cuda_card == name
    assert name in str(host)
    card = cuda_cards()[name.lower()]
    # The makers' GB are 2**30 bytes or a little less of them for torch, and never below 10**9.
    assert 0.9 * card.memory_gb * 2**30 < host.gpu_memory_bytes < card.memory_gb * 2**30


# Every rule takes every form.
RULES = {
    "memory_budget": lambda machine: mpskit.memory_budget(machine=machine),
    "precision_for": lambda machine: mpskit.precision_for("mps", machine=machine),
    "autocast": lambda machine: type(mpskit.autocast("mps", "float32", machine=machine)),
    "grad_scaler": lambda machine: mpskit.grad_scaler("cpu", machine=machine).is_enabled(),
    "dataloader_kwargs": lambda machine: mpskit.dataloader_kwargs("cpu", machine=machine),
    "known_issues": lambda machine: mpskit.known_issues(machine=machine, torch_version="2.9.0"),
    "cpu_threads": lambda machine: mpskit.cpu_threads(machine=machine),
    "predict_speedup": lambda machine: mpskit.predict_speedup(
        mpskit.Workload(flops=1e9), machine=machine
    ),
    "fits": lambda machine: ESTIMATE.fits(machine),
    "fits_by_name": lambda machine: ESTIMATE.fits(machine=machine),
    "estimate_from_config": lambda machine: mpskit.estimate_from_config(
        "openai-community/gpt2", batch_size=1, seq_len=8, training=False, machine=machine
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_a_name_a_machine_and_a_host(rule):
    answers = [RULES[rule](form) for form in ("m3-max-64gb", MAC, as_host(MAC))]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_refuses_what_is_no_machine(rule):
    with pytest.raises(UnknownMachineError, match="m3-max-64gb"):
        RULES[rule]("m3-max-65gb")
    with pytest.raises(ArgumentTypeError):
        RULES[rule](3.5)


def test_host_is_an_older_name_of_machine():
    host = as_host("m1-8gb")
    assert mpskit.cpu_threads(host=host) == mpskit.cpu_threads(machine="m1-8gb") == 4
    assert mpskit.precision_for("mps", host) == mpskit.precision_for("mps", machine="m1-8gb")
    assert mpskit.known_issues(host) == mpskit.known_issues(machine="m1-8gb")
    assert mpskit.known_issues(host=host) == mpskit.known_issues(machine="m1-8gb")
    with pytest.raises(ArgumentError, match="not both"):
        mpskit.cpu_threads(machine="m1-8gb", host=host)


def test_a_card_says_nothing_about_the_cpus_beside_it():
    for rule in (mpskit.cpu_threads, mpskit.dataloader_kwargs):
        with pytest.raises(ArgumentError, match="CPUs"):
            rule("cuda", machine="T4")
    assert mpskit.known_issues(machine="T4") == ()
    with pytest.raises(ArgumentError, match="no Mac"):
        mpskit.predict_speedup(mpskit.Workload(flops=1e9), machine="T4")


def test_a_profile_found_by_name_is_the_one_that_find_machine_finds():
    assert as_host("m1-8gb") == Host.from_readings(find_machine("m1-8gb").readings())
