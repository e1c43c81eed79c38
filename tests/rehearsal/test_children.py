"""Children are rehearsed as well, and the report is that of the lowest rank that trained."""

import json
import os
import subprocess
import sys

import pytest

import mpskit
from mpskit.host import find_machine
from mpskit.rehearsal.children import Reports, environment, is_launcher
from mpskit.rehearsal.result import MachineVerdict, Rehearsal, Verdict

pytestmark = pytest.mark.needs_torch("simulation")

# A process that imports torch and a rehearsal of it. In every run one child ends as it should, and
# one is started by torchrun from the command line.
FULL = pytest.mark.full

TRAIN = """
import os, torch
from torch import nn
rank = int(os.environ.get("RANK", 0))
model = nn.Linear(64 * (1 + rank), 64).to("mps")
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(99):
    model(torch.ones(8, 64 * (1 + rank), device="mps")).sum().backward()
    optimizer.step()
"""


def report(steps=0, peak=0):
    one = MachineVerdict(machine="m1-8gb", verdict=Verdict.FITS, peak_bytes=peak, driver_bytes=peak)
    return Rehearsal(torch_version="2.13.0", machines=(one,), steps=steps)


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["torchrun", "train.py"], True),
        (["/usr/bin/python3.11", "/env/bin/torchrun", "train.py"], True),
        (["python", "-m", "torch.distributed.run", "train.py"], True),
        (["-m", "accelerate.commands.launch", "train.py"], True),
        (["python", "-X", "dev", "-u", "/env/bin/accelerate", "launch", "train.py"], True),
        (["python", "train.py", "torchrun"], False),
        (["python", "-m", "train", "torchrun"], False),
        (["python", "-c", "torchrun"], False),
        (["python"], False),
        ([], False),
    ],
)
def test_launchers(words, is_one):
    assert is_launcher(words) is is_one


def test_the_report_is_that_of_the_lowest_rank_that_trained(monkeypatch):
    reports = Reports()
    assert reports.best(None) == (None, 0)
    for rank, one in ((2, report(3, 7)), (1, report(3, 5)), (0, report(0, 9))):
        monkeypatch.setenv("RANK", str(rank))
        reports.add(one)
    (reports.folder / "broken.json").write_text("{")
    assert reports.best(None) == (report(3, 5), 3)
    assert reports.best(report()) == (report(3, 5), 4)
    assert reports.best(report(1, 1)) == (report(1, 1), 4)
    reports.close()
    assert not reports.folder.exists()
    reports.add(report())  # of a child that ends after its parent: lost without an error


def test_a_child_ends_without_an_error_and_its_report_is_taken(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    with mpskit.rehearse(["m1-8gb", "m1-16gb"], steps=2) as run:
        done = subprocess.run(
            [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    said = [line for line in done.stderr.splitlines() if " torch/" not in line]  # but torch's log
    assert (done.returncode, said) == (0, [])
    found = run.report
    assert (found.steps, found.ended, found.processes) == (2, "steps", 2)
    assert [one.machine for one in found.machines] == ["m1-8gb", "m1-16gb"]
    assert found.peak.file.endswith("train.py")


@FULL
def test_an_error_of_a_child_is_its_own(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN + "raise ValueError('its own')\n")
    with mpskit.rehearse(steps=None) as run:
        done = subprocess.run(
            [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert "ValueError: its own" in done.stderr
    (found,) = run.report.of("stops")
    assert (found.text, found.line) == ("ValueError: its own", 10)


@FULL
def test_a_launcher_is_simulated_and_its_children_are_rehearsed(tmp_path):
    (tmp_path / "torchrun").write_text(
        "import subprocess, sys, torch\n"
        "print(torch.ones(2, device='mps').sum().item())\n"
        "sys.exit(subprocess.run([sys.executable, 'train.py']).returncode)\n"
    )
    (tmp_path / "train.py").write_text(TRAIN)
    reports = Reports()
    variables = environment(
        [find_machine("m1-8gb")], reports.folder, fallback=None, steps=1, strict=False, write=False
    )
    done = subprocess.run(
        [sys.executable, "torchrun"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | variables,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
    found, number = reports.best(None)
    assert (found.steps, number) == (1, 1)
    reports.close()


def test_torchrun_by_the_command_line(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(
        [sys.executable, "-m", "mpskit", "rehearse", "m1-8gb", "--json", "--", *run],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["steps"], document["processes"]) == (3, 2)
    assert document["peak_bytes"] < 150_000  # the second rank's model is twice as large
