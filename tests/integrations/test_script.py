"""A plain script through the command line, and the same script without it."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, 4)
).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
data = TensorDataset(torch.randn(16, 1, 8, 8), torch.randint(0, 4, (16,)))
losses = []
for inputs, targets in DataLoader(data, batch_size=4, shuffle=True):
    loss = nn.functional.cross_entropy(model(inputs.to(device)), targets.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
json.dump([sorted({str(p.device) for p in model.parameters()}), losses], open(sys.argv[1], "w"))
"""


def run(path, *before):
    words = [sys.executable, *before, str(path / "train.py"), str(path / "out.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((path / "out.json").read_text())


# Two processes that train; in every run tests/cli/test_simulate.py runs scripts, and the other files
# here hold losses bit by bit.
@pytest.mark.full
def test_the_same_losses_bit_for_bit(tmp_path, monkeypatch):
    # Threads change the order of sums: both runs get the same number.
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    (tmp_path / "train.py").write_text(SCRIPT)
    where, inside = run(tmp_path, "-m", "mpskit", "simulate", "macbook-air-m1-8gb", "--")
    assert where == ["mps:0"]
    where, outside = run(tmp_path)
    assert where == ["cpu"]
    assert inside == outside


@pytest.mark.full  # in every run the doctor looks at each machine in the tests' own process
def test_the_doctor_finds_nothing_wrong_with_a_simulated_mac():
    words = ["-m", "mpskit", "simulate", "m1-8gb", "--", "-m", "mpskit", "doctor", "--json"]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["machine"]["kind"] == "apple-silicon"
