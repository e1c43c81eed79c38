"""The downstream project: its own configuration, its own trainer, mpskit's plugin."""

import subprocess
import sys
from pathlib import Path

import pytest

from mpskit._base.sizes import GIB
from mpskit.allocator.mps_text import size_text
from mpskit.backends import versions

TORCH = versions.torch_version()
PROJECT = Path(__file__).parent / "downstream"
ERRORS = {
    "test_float64": "TypeError: Cannot convert a MPS Tensor to float64 dtype as the MPS framework",
    "test_missing_operator": "NotImplementedError: The operator 'aten::linalg_eig' is not currently",
    "test_device_mix": "RuntimeError: Expected all tensors to be on the same device, but found at",
    "test_unpicklable_dataset": "Can't pickle local object",
}


def suite(*words):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.mark.full  # trains on five Macs; the planted mistakes run the same plugin, below
@pytest.mark.needs_torch("simulation")
def test_its_own_tests_pass_on_five_macs():
    done = suite("tests")
    assert done.returncode == 0, done.stdout
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
    assert sum("test_it_trains[" in line for line in passed) == 5


@pytest.mark.full  # says of this suite's mistakes, not of mpskit, that Linux does not show them
def test_the_planted_mistakes_do_not_show_on_linux():
    done = suite("planted")
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


@pytest.mark.needs_torch("simulation")
def test_each_planted_mistake_is_caught_with_the_macs_own_error():
    done = suite("planted", "--mpskit-machine", "m1-8gb")
    assert "5 failed" in done.stdout, done.stdout
    for name, error in ERRORS.items():
        section = done.stdout.partition(f"_ {name} _")[2].partition("\n____")[0]
        assert error in section, section
    section = done.stdout.partition("_ test_out_of_memory _")[2].partition("\n____")[0]
    cap = size_text(int(9.07 * GIB), str(TORCH))
    pool = "shared" if versions.has("mps.shared_storage", str(TORCH)) else "private"
    assert (
        f"max allowed: {cap}). Tried to allocate {size_text(GIB, str(TORCH))} on {pool} pool."
        in (section)
    ), section
