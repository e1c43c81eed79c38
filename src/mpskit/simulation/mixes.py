"""Which arguments of which operators may stay on the CPU while the others are on MPS.

Every row was read in the pytorch source file named beside it; what is not here is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._ops import OpOverload

__all__ = ["allowed"]

_ANY = frozenset({"*"})
_INDICES = frozenset({"indices"})
_LENGTHS = frozenset({"input_lengths", "target_lengths"})
_BATCH_SIZES = frozenset({"batch_sizes"})
_SCALARS = frozenset({"scalars"})
_STEPS = frozenset({"state_steps", "lr", "grad_scale", "found_inf"})

# operator -> its arguments that may be on the CPU
_ALLOWED: dict[str, frozenset[str]] = {
    # Copy.cpp, mps/operations/Copy.mm, ForeachUtils.h: copying is what they are for
    "aten::copy_": _ANY,
    "aten::copy": _ANY,
    "aten::_copy_from": _ANY,
    "aten::_copy_from_and_resize": _ANY,
    "aten::_foreach_copy_": _ANY,
    # TensorAdvancedIndexing.cpp and IndexingUtils.h move index tensors to the indexed one's device
    "aten::index": _INDICES,
    "aten::index_put": _INDICES,
    "aten::index_put_": _INDICES,
    "aten::_index_put_impl_": _INDICES,
    "aten::_unsafe_index": _INDICES,
    "aten::_unsafe_index_put": _INDICES,
    # PackedSequence.cpp: lengths and batch sizes have to be on the CPU
    "aten::_pack_padded_sequence": frozenset({"lengths"}),
    "aten::_pack_padded_sequence_backward": _BATCH_SIZES,
    "aten::_pad_packed_sequence": _BATCH_SIZES,
    # RNN.cpp: the batch sizes of a packed sequence
    "aten::lstm": _BATCH_SIZES,
    "aten::gru": _BATCH_SIZES,
    "aten::rnn_tanh": _BATCH_SIZES,
    "aten::rnn_relu": _BATCH_SIZES,
    # LossCTC.cpp copies the lengths to the CPU itself
    "aten::ctc_loss": _LENGTHS,
    "aten::_ctc_loss": _LENGTHS,
    "aten::_ctc_loss_backward": _LENGTHS,
    # TensorShape.cpp asks for the sections on the CPU
    "aten::tensor_split": frozenset({"tensor_indices_or_sections"}),
    # Resize.cpp looks at the template's sizes only
    "aten::resize_as_": frozenset({"the_template"}),
    # ForeachOpsKernels.cpp wants its tensor of scalars on the CPU
    "aten::_foreach_addcdiv": _SCALARS,
    "aten::_foreach_addcdiv_": _SCALARS,
    "aten::_foreach_addcmul": _SCALARS,
    "aten::_foreach_addcmul_": _SCALARS,
    # torch.optim: steps and a tensor learning rate may be scalars on the CPU
    "aten::_fused_adam_": _STEPS,
    "aten::_fused_adamw_": _STEPS,
    "aten::_fused_sgd_": _STEPS,
}


def allowed(op: OpOverload, argument: str | int) -> bool:
    """Return whether an argument may be a CPU tensor among mps tensors.

    Tensors without dimensions are not asked about: TensorIterator takes them for numbers, so the
    caller lets them pass.

    Args:
        op: the operator as dispatched.
        argument: the argument's name in the schema, or its position.
    """
    names = _ALLOWED.get(op._schema.name)
    if names is None or names is _ANY:
        return names is _ANY
    if isinstance(argument, int):
        argument = op._schema.arguments[argument].name
    return argument in names
