"""The table of backends: every row complete, and asked by name, by number and by device."""

import subprocess
import sys

import pytest
import torch

from mpskit._base.data import read_toml
from mpskit.backends.kinds import ACCELERATORS, KINDS, NAMES, ORDER, ROCM, Api, StatusRule, kind_of
from mpskit.backends.versions import has


def test_the_order():
    assert ORDER == ("cuda", "mps", "xpu", "*", "cpu")
    assert set(NAMES) > {*ACCELERATORS, "cpu"}


@pytest.mark.parametrize("kind", [*KINDS.values(), ROCM], ids=lambda kind: kind.title)
def test_a_row_is_complete(kind):
    assert torch.device(kind.name).type == kind.name
    if kind.api is Api.MODULE:
        assert hasattr(torch, kind.name) or not has(kind.name, torch.__version__)
    if kind.status is StatusRule.CARD:
        assert kind.look
        assert kind.hidden_by
        assert kind.install
        assert kind.vendor
        assert kind.build
    if kind.allocator:
        assert kind.name in read_toml("precision.toml")
    if kind.caches:
        rows = read_toml("oom_texts.toml")["text"]
        assert {kind.name, kind.title.lower()} & {row["backend"] for row in rows}


@pytest.mark.parametrize("device", ["xpu", "xpu:1", torch.device("xpu", 1)])
def test_a_device_finds_its_row(device):
    assert kind_of(device) is KINDS["xpu"]


def test_what_has_no_row_is_taken_with_care():
    kind = kind_of("hpu:0")
    assert (kind.name, kind.title, kind.api, kind.pins) == ("hpu", "HPU", Api.ACCELERATOR, False)


@pytest.mark.parametrize(
    ("kind", "version", "label"),
    [
        (KINDS["cuda"], "12.8", "CUDA 12.8"),
        (ROCM, "6.2.41133", "ROCm (HIP 6.2.41133)"),
        (KINDS["xpu"], "20250201", "XPU (SYCL 20250201)"),
        (KINDS["mps"], None, "MPS"),
    ],
)
def test_a_label_tells_what_torch_was_built_for(kind, version, label):
    assert kind.label(version) == label


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("numbered", {"cuda", "xpu", "ROCm"}),
        ("pins", {"cuda", "xpu", "ROCm"}),
        ("foreach", {"cuda", "xpu", "ROCm"}),
        ("non_blocking", {"cuda", "xpu", "ROCm", "cpu", "meta"}),
        ("fork_safe", {"cuda", "xpu", "ROCm", "cpu", "meta"}),
        ("float64", {"cuda", "xpu", "ROCm", "cpu", "meta"}),
        ("bfloat16", {"mps", "xpu", "cpu", "meta"}),
    ],
)
def test_who_can_what(field, names):
    kinds = {**KINDS, "ROCm": ROCM}
    assert {name for name, kind in kinds.items() if getattr(kind, field)} == names


def test_it_imports_no_torch():
    code = "import sys, mpskit.backends.kinds; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
