"""Torch's own words, by version."""

import pytest

from mpskit.simulation import messages

SHA = "cf30153c4c131c8164ee7798e5022d810682e2cb"
TAIL = (
    "As a temporary fix, you can set the environment variable `PYTORCH_ENABLE_MPS_FALLBACK=1` to "
    "use the CPU as a fallback for this op. WARNING: this will be slower than running natively on "
    "MPS."
)
OLD = (
    "The operator 'aten::mode' is not currently implemented for the MPS device. If you want this "
    "op to be added in priority during the prototype phase of this feature, please comment on "
    f"https://github.com/pytorch/pytorch/issues/77764. {TAIL}"
)
NEW = (
    "The operator 'aten::mode' is not currently implemented for the MPS device. If you want this "
    "op to be considered for addition please comment on "
    "https://github.com/pytorch/pytorch/issues/141287 and mention use-case, that resulted in "
    f"missing op as well as commit hash {SHA}. {TAIL}"
)


@pytest.mark.parametrize(
    ("version", "text"),
    [("2.4.1", OLD), ("2.5.1", OLD), ("2.6.0", NEW), ("2.13.0+cpu", NEW), ("2.15.0", NEW)],
)
def test_missing_operator(version, text):
    assert messages.missing_operator("aten::mode", version, SHA) == text


def test_distributed_operator():
    text = messages.distributed_operator("c10d::allreduce_", "2.13.0", SHA)
    assert text.startswith("The distributed operator 'c10d::allreduce_' is not currently")
    assert text.endswith(
        f"as well as commit hash {SHA}. Please note, that distributed operators can not fall back "
        "to CPU"
    )


def test_the_rest():
    assert messages.fallback("aten::mode") == (
        "The operator 'aten::mode' is not currently supported on the MPS backend and will fall "
        "back to run on the CPU. This may have performance implications."
    )
    assert messages.placeholder_storage() == (
        "Placeholder storage has not been allocated on MPS device!"
    )
    assert messages.too_many_dimensions(17) == (
        "MPS supports tensors with dimensions <= 16, but got 17."
    )
