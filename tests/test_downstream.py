"""The downstream project: its own configuration, its own trainer, mpskit's plugin."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent / "downstream"
ERRORS = {
    "test_float64": "TypeError: Cannot convert a MPS Tensor to float64 dtype as the MPS framework",
    "test_missing_operator": "NotImplementedError: The operator 'aten::linalg_eig' is not currently",
    "test_device_mix": "RuntimeError: Expected all tensors to be on the same device, but found at",
    "test_unpicklable_dataset": "Can't pickle local object",
    "test_out_of_memory": "max allowed: 9.07 GiB). Tried to allocate 1024.00 MiB on shared pool.",
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


@pytest.mark.needs_torch("simulation")
def test_its_own_tests_pass_on_five_macs():
    done = suite("tests")
    assert done.returncode == 0, done.stdout
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
    assert sum("test_it_trains[" in line for line in passed) == 5


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
