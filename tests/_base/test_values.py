"""A result can be written as JSON whatever bytes its texts were."""

import json

import pytest
from pydantic import BaseModel

from mpskit import environment
from mpskit._base.values import Value
from mpskit.host import Host, Readings


class Inner(Value):
    name: str


class Outer(Value):
    inner: Inner
    names: tuple[str, ...] = ()
    by_name: dict[str, str] = {}
    number: float = 0.5


ODD = Outer(inner=Inner(name="a\udcffb"), names=("\udcff", "é"), by_name={"\udc80": "\udcff"})


def test_bytes_that_are_no_text_become_escapes():
    found = json.loads(ODD.model_dump_json())
    assert found["inner"] == {"name": "a\\udcffb"}
    assert found["names"] == ["\\udcff", "é"]
    assert list(found["by_name"].values()) == ["\\udcff"]
    assert Outer.model_validate_json(ODD.model_dump_json()).number == 0.5


def test_a_program_gets_the_text_as_it_was():
    assert ODD.model_dump()["names"] == ("\udcff", "é")


def test_inside_a_model_of_somebody_else():
    class Theirs(BaseModel):
        ours: Outer

    assert json.loads(Theirs(ours=ODD).model_dump_json())["ours"]["inner"]["name"] == "a\\udcffb"


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_the_schema_still_has_the_fields(mode):
    assert set(Outer.model_json_schema(mode=mode)["properties"]) == set(Outer.model_fields)


@pytest.mark.parametrize(
    "value",
    [
        Host.from_readings(Readings(system="Li\udcff", cpu_brand="\udcff", torch_version="\udcff")),
        environment.current_environment({"PYTORCH_MPS_FAST_MATH": "\udcff", "PYTORCH_\udcff": "x"}),
    ],
)
def test_what_the_machine_says_in_any_bytes(value):
    assert json.loads(value.model_dump_json().encode())
