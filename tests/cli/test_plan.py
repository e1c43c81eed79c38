"""mpskit plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.plan.conftest import TINY

from mpskit.cli.main import main
from remembered import remember_traces


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_traces(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    out, err = capsys.readouterr()
    return code, out, err


def read(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capsys, *words, "--json")
    return code, json.loads(out)


def test_a_config_on_a_mac(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, config, "--machine", "m1-16gb", "--seq-len", "128")
    assert code == 0
    assert "8 rows of 128 tokens" in out
    assert "fits" in out


def test_its_json(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = read(
        capsys, config, "--machine", "m1-16gb", "--batch", "2", "--lora", "4", "--samples", "100"
    )
    assert code == 0
    assert found["schema"]
    assert (found["verdict"], found["batch_size"], found["lora"]["rank"]) == ("fits", 2, 4)
    assert found["step"]["step"]["low"] < found["step"]["step"]["high"]


def test_what_does_not_fit_exits_with_1_and_json(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = read(capsys, config, "--machine", "m1-16gb", "--budget", "20MiB")
    assert code == 1
    assert found["verdict"] == "does-not-fit"


def test_inference(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = read(capsys, config, "--machine", "m4-16gb", "--inference", "--context", "64")
    assert code == 0
    assert (found["context"], found["weights_dtype"]) == (64, "bfloat16")


def test_a_table_over_machines(
    config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "table.png"
    code, out, _ = run(
        capsys, config, "--machines", "m1-8gb", "m1-16gb", "--seq-len", "64", "--plot", str(picture)
    )
    assert code == 0
    assert "the smallest machine for it: m1-8gb" in out
    assert picture.exists()


def test_all_machines_are_those_that_one_can_buy(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mpskit.host.machines import sold_macs

    code, found = read(capsys, config, "--machines", "all", "--seq-len", "64")
    assert code == 0
    assert {plan["machine"] for plan in found["plans"]} == {mac.name for mac in sold_macs()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Qwen/Qwen2.5-0.6B", "--machine", "m1-16gb"), "near: Qwen/Qwen2.5-0.5B"),
        (("CONFIG", "--machine", "m1-17gb"), "m1-16gb"),
        (("CONFIG", "--context", "64"), "--context is for --inference"),
        (("CONFIG", "--inference", "--lora", "8"), "--lora is for training"),
        (("CONFIG", "--machines", "m1-8gb", "--budget", "1GiB"), "--machines"),
        (("CONFIG", "--machine", "m1-8gb", "--batch", "3", "--effective-batch", "8"), "divide"),
        (("CONFIG", "--machine", "m1-8gb", "--plot", "no/such/folder/p.png"), "folder"),
    ],
)
def test_bad_input(
    words: tuple[str, ...], said: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *(config if word == "CONFIG" else word for word in words))
    assert code == 2
    assert said in " ".join(err.split())


def test_the_decided_precision(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = read(
        capsys, config, "--machine", "m1-16gb", "--precision", "bf16-mixed", "--base", "bf16"
    )
    assert code == 0
    assert (found["weights_dtype"], found["autocast_dtype"]) == ("bfloat16", "bfloat16")
