"""The rules that turn on names, devices and installed versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from mpskit.errors import ArgumentError
from mpskit.plan import defaults as rules
from mpskit.plan.defaults import (
    STAGES,
    defaults,
    missing_quantization,
    optimizer_for,
    quantizations,
    stage_epochs,
)


@pytest.mark.parametrize(
    ("name", "device", "expected", "said"),
    [
        ("adamw", "mps", "adamw", ""),
        ("AdamW", "mps", "adamw", ""),
        ("adamw_torch_fused", "mps", "adamw", ""),
        ("adafactor", "cuda", "adafactor", ""),
        ("paged_adamw_8bit", "mps", "adamw", "needs CUDA"),
        ("paged_adamw_8bit", "cpu", "adamw", "needs CUDA"),
        ("adamw_bnb_8bit", "cuda", "adamw", "keeps its states in 8 bits"),
    ],
)
def test_optimizers(name: str, device: str, expected: str, said: str) -> None:
    found = optimizer_for(name, device)
    assert found.name == expected
    assert said in found.reason
    assert bool(said) == bool(found.reason)


def test_an_unknown_optimizer_lists_those_that_are_known() -> None:
    with pytest.raises(ArgumentError, match="adafactor, adagrad"):
        optimizer_for("adamwww", "mps")


@pytest.mark.from_torch("2.5", "torch.optim has Adafactor")
def test_every_stand_in_is_in_torch() -> None:
    table = defaults("optimizers")
    known = {name.lower() for name in vars(torch.optim)}
    assert {*table["cuda_only"].values(), *table["torch"].values(), *table["trainer"]} <= known


@pytest.mark.parametrize(
    ("installed", "device", "bases", "missing"),
    [
        (None, "mps", (), "bitsandbytes>=0.50.0"),
        ("0.49.2", "mps", (), "bitsandbytes>=0.50.0"),
        ("0.50.0", "mps", ("nf4", "int8"), None),
        ("0.49.2", "cpu", ("nf4", "int8"), None),
        ("0.45", "cuda", (), "bitsandbytes>=0.46.1"),
        ("0.50.1", "xpu", (), None),
    ],
)
def test_quantization_by_device_and_version(
    installed: str | None,
    device: str,
    bases: tuple[str, ...],
    missing: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(package: str) -> str:
        if installed is None:
            raise PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(rules, "version", version)
    assert quantizations(device) == bases
    assert missing_quantization(device) == missing


def test_the_stages_take_longer_and_longer() -> None:
    assert [stage_epochs(stage) for stage in STAGES] == [3, 5, 10]
    with pytest.raises(ArgumentError, match="development, test, production"):
        stage_epochs("later")  # type: ignore[arg-type]
