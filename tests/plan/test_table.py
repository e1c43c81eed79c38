"""Plans over machines: which Mac a model needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpskit.errors import ArgumentError, ArgumentTypeError, UnknownMachineError
from mpskit.host.machines import sold_macs
from mpskit.plan import plan_training
from mpskit.plan.table import COLUMNS, plan_machines


def test_each_setting_is_estimated_once(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpskit.plan import jobs

    made: list[object] = []
    estimate = jobs._estimate

    def counted(config: Any, device: str, setting: Any) -> Any:
        made.append((device, setting))
        return estimate(config, device, setting)

    monkeypatch.setattr(jobs, "_estimate", counted)
    macs = ["m1-8gb", "m1-16gb", "m1-pro-32gb", "m2-24gb"]
    table = plan_machines(tiny, macs, seq_len=128)
    assert len(made) == len(set(made))
    assert [plan.machine for plan in table.plans] == ["m1-8gb", "m1-16gb", "m2-24gb", "m1-pro-32gb"]


def test_a_row_is_the_machines_own_plan(tiny: dict[str, Any]) -> None:
    table = plan_machines(tiny, ["m1-8gb", "m4-16gb"], seq_len=128)
    for plan in table.plans:
        own = plan_training(tiny, machine=plan.machine, seq_len=128)
        assert own.model_copy(update={"would_fit": ()}) == plan


def test_the_smallest_machine_and_the_rows(tiny: dict[str, Any]) -> None:
    large = {**tiny, "num_hidden_layers": 12, "hidden_size": 2048, "intermediate_size": 8192}
    macs = [mac for mac in sold_macs() if mac.chip in ("M1", "M1 Max", "M1 Ultra")]
    fixed = {"checkpointing": False, "precision": "fp32"}
    table = plan_machines(large, macs, seq_len=512, method="full", fixed=fixed)
    assert bool(table)
    least = table.smallest
    assert least is not None
    before = [plan for plan in table.plans if plan.usable_bytes < least.usable_bytes]
    assert all(plan.verdict != "fits" for plan in before)
    assert before
    rows = table.rows()
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert str(table).splitlines()[0].startswith("machine")


def test_a_table_is_drawn(tiny: dict[str, Any], tmp_path: Path) -> None:
    table = plan_machines(tiny, ["m1-8gb", "m1-16gb"], seq_len=64)
    assert table.plot(tmp_path / "table.png").stat().st_size > 5000


def test_bad_tables(tiny: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="at least one machine"):
        plan_machines(tiny, [])
    with pytest.raises(ArgumentTypeError, match="several names"):
        plan_machines(tiny, "m1-8gb")
    with pytest.raises(UnknownMachineError):
        plan_machines(tiny, ["m1-8gb", "m1-9gb"], seq_len=64)
