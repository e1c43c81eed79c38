"""The examples run as a user runs them, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    """Run an example in a process of its own; warnings are errors there too."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "MPSKIT_NO_CACHE": "1"}
    done = subprocess.run(
        (sys.executable, "-W", "error::UserWarning:mpskit", str(EXAMPLES / name), *arguments),
        capture_output=True,
        text=True,
        timeout=280,  # on a busy machine; pytest's own limit is 300
        env=environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# An example is a process that imports torch and trains, several seconds each: every run of the
# tests makes one of each that runs here, and the full one those on a simulated Mac too.
ON_A_MAC = [pytest.mark.full, pytest.mark.needs_torch("simulation")]


@pytest.mark.parametrize(
    "machine",
    [(), pytest.param(("--machine", "m1-8gb"), marks=ON_A_MAC)],
    ids=["here", "simulated"],
)
def test_oom_retry_finds_a_batch_size_that_fits(machine):
    text = run("oom_retry.py", "--start", "320", "--limit", "1536MiB", *machine)
    assert "batch size 320 ran out of memory" in text
    assert re.search(r"^a batch of \d+ fits \(loss \d", text, re.MULTILINE)
    assert "limited to 1.50 GiB" in text


@pytest.mark.full
@pytest.mark.needs_torch("simulation")
def test_check_model_agrees_on_a_simulated_mac():
    assert "mps agrees with cpu" in run("check_model.py", "--machine", "m2-16gb")


def test_monitor_training_learns_and_writes_what_it_saw(tmp_path):
    text = run("monitor_training.py", "--out", str(tmp_path))
    assert "Peak memory of" in text
    lines = (tmp_path / "memory.csv").read_text().splitlines()
    assert lines[0].startswith("seconds,")
    assert len(lines) > 3
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.full
def test_monitor_training_on_a_simulated_mac(tmp_path):
    text = run("monitor_training.py", "--out", str(tmp_path), "--machine", "m1-8gb")
    assert "autocast to float16, with GradScaler" in text
    assert "Peak memory of mps: tensors" in text
