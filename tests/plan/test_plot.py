"""The picture of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpskit.errors import ArgumentError
from mpskit.plan import plan_inference, plan_training


def test_each_way_has_its_bar(tiny: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_training(tiny, machine="m1-8gb", seq_len=64)
    picture = plan.plot(tmp_path / "plan.svg").read_text(encoding="utf-8")
    for way in plan.compared:
        assert way.words in picture or way.words.replace("+", "&#43;") in picture
    assert "(chosen)" in picture
    assert "usable" in picture


def test_a_plan_of_inference_is_drawn_too(tiny: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_inference(tiny, machine="m1-8gb", context=64)
    assert plan.plot(tmp_path / "plan.png").exists()


def test_a_folder_is_no_file(tiny: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_training(tiny, machine="m1-8gb", seq_len=64)
    with pytest.raises(ArgumentError):
        plan.plot(tmp_path)
