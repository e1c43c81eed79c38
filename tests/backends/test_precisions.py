"""The names of precisions: the house's, the trainers' and torch's, each with one meaning."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mpskit
from mpskit import TensorSpec
from mpskit.backends.precisions import PRECISIONS, precision_name, precision_of
from mpskit.errors import ArgumentError, ArgumentTypeError

NAMES = [
    *((name, name) for name in PRECISIONS),
    ("32-true", "fp32"),
    ("32", "fp32"),
    ("bf16-true", "bf16"),
    ("16-true", "fp16"),
    ("16-mixed", "fp16-mixed"),
    ("BF16-Mixed", "bf16-mixed"),
    (" no ", "fp32"),
    ("float32", "fp32"),
    ("torch.bfloat16", "bf16"),
    (torch.float32, "fp32"),
    (torch.float16, "fp16"),
    (torch.bfloat16, "bf16"),
]


@pytest.mark.parametrize(("given_", "name"), NAMES)
def test_a_name_by_any_trainer(given_, name):
    assert precision_name(given_) == name
    assert precision_of(given_) == precision_of(name)


def test_what_the_names_stand_for():
    assert precision_of("fp32") == (None, None)
    assert precision_of("fp16") == (torch.float16, None)
    assert precision_of("bf16-mixed") == (None, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("16", "which type"),
        ("bf16-mixd", "near: bf16-mixed"),
        ("float64", "one of fp32"),
        ("64-true", "one of fp32"),
        ("int8", "one of"),
        ("fp8", "one of"),
        ("", "one of"),
        (torch.int64, "one of"),
    ],
)
def test_no_such_precision(name, said):
    with pytest.raises(ArgumentError, match=said) as caught:
        precision_name(name)
    assert caught.value.given is name


@pytest.mark.parametrize("wrong", [None, 16, 32, 1.5, b"fp32", ["fp32"], torch.zeros(1), torch])
def test_what_is_no_name(wrong):
    with pytest.raises(ArgumentTypeError, match="precision"):
        precision_name(wrong)


@given(st.text())
def test_any_text_is_a_precision_or_an_error_of_ours(text):
    try:
        assert precision_name(text) in PRECISIONS
    except ArgumentError as error:
        assert error.given == text


def test_lightning_and_torch_still_have_the_names():
    lightning = pytest.importorskip("lightning.fabric.connector")
    known = {str(name) for name in lightning._PRECISION_INPUT_STR.__args__}
    taken = {name for name, _ in NAMES if isinstance(name, str)} & known
    assert {"32-true", "bf16-true", "16-true", "16-mixed", "bf16-mixed"} <= taken
    assert {name for name in known if name.endswith(("-true", "-mixed"))} - taken == {"64-true"}


def test_every_rule_takes_every_spelling():
    def estimate(precision):
        return mpskit.estimate_training_memory(
            torch.nn.Linear(8, 4), TensorSpec((2, 8)), precision=precision, device="mps"
        )

    assert estimate("16-mixed") == estimate("fp16-mixed")
    assert estimate(torch.bfloat16) == estimate("bf16-true") == estimate("bf16")
    assert estimate("no").precision == "fp32"
    whole = [
        mpskit.estimate_from_config(
            "openai-community/gpt2", batch_size=1, seq_len=8, precision=name, device="mps"
        )
        for name in ("bf16-true", torch.bfloat16)
    ]
    assert whole[0] == whole[1]
    assert whole[0].precision == "bf16"
    kinds = {type(mpskit.autocast("cpu", name)) for name in ("bf16-mixed", torch.bfloat16, "bf16")}
    assert kinds == {torch.autocast}


@pytest.mark.parametrize(
    ("machine", "name"), [("m1-16gb", "fp32"), ("m3-max-64gb", "bf16-mixed"), ("T4", "fp16-mixed")]
)
def test_what_precision_for_advises_has_a_name_that_the_estimates_take(machine, name):
    found = mpskit.precision_for(machine=machine, torch_version="2.13.0")
    assert found.name == name == precision_name(found.name)
