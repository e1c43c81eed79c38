"""Which CPU arguments are legal beside mps tensors."""

import pytest
import torch

from mpskit.simulation import device_mismatch

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("op", "argument", "allowed"),
    [
        (aten.copy_.default, "src", True),
        (aten.copy_.default, "self", True),
        (aten.index.Tensor, "indices", True),
        (aten.index.Tensor, "self", False),
        (aten.index_put_.default, 1, True),
        (aten.index_put_.default, "values", False),
        (aten._index_put_impl_.default, "indices", True),
        (aten._pack_padded_sequence.default, "lengths", True),
        (aten._pack_padded_sequence.default, 0, False),
        (aten._pad_packed_sequence.default, "batch_sizes", True),
        (aten._ctc_loss.Tensor, "input_lengths", True),
        (aten._ctc_loss.Tensor, "targets", False),
        (aten._fused_adamw_.default, "state_steps", True),
        (aten._fused_adamw_.default, "grads", False),
        (aten.resize_as_.default, "the_template", True),
        (aten.add.Tensor, "other", False),
        (aten.mm.default, 1, False),
        (aten.embedding.default, "indices", False),
    ],
)
def test_allowed(op, argument, allowed):
    assert device_mismatch.allowed(op, argument) is allowed


def test_every_row_names_arguments_that_exist():
    for name, arguments in device_mismatch._ALLOWED.items():
        packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
        schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
        known = {argument.name for schema in schemas for argument in schema.arguments}
        assert arguments <= known | {"*"} | device_mismatch._STEPS, name
        assert arguments & (known | {"*"}), name
