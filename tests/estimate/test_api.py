"""What the two functions refuse before anything is traced."""

import pytest
import torch

from mpskit import estimate_inference_memory, estimate_training_memory
from mpskit.backends import versions
from mpskit.cli.main import main
from mpskit.errors import UnsupportedTorchError

TOO_OLD = "a traced memory estimate needs torch 2.6 or newer; 2.5.1 is installed"


@pytest.fixture(autouse=True)
def _an_older_torch(monkeypatch):
    monkeypatch.setattr(versions, "torch_version", lambda: "2.5.1")


@pytest.mark.parametrize("estimate", [estimate_training_memory, estimate_inference_memory])
def test_an_older_torch_is_refused_by_name(estimate):
    with pytest.raises(UnsupportedTorchError, match=TOO_OLD) as error:
        estimate(torch.nn.Linear(2, 2), torch.ones(1, 2))
    assert error.value.given == "2.5.1"


def test_the_command_says_so_in_one_line(tmp_path, capsys):
    path = tmp_path / "model.py"
    path.write_text("from torch import nn\nmodel = nn.Linear(2, 2)\n")
    assert main(["estimate", f"{path}:model", "--batch", "float32[1,2]"]) == 2
    assert capsys.readouterr().err == f"mpskit estimate: {TOO_OLD}\n"
