"""Device mismatch in one operator: which CPU arguments are allowed, and a Mac's errors.

The code generated for MPS checks no devices (torchgen writes those checks for CUDA only), so the
text is that of the first code to notice: TensorIterator in pointwise operators, a check of the
kernel's own, or the MPSGraph placeholder that finds a tensor without a Metal buffer. Sources: the
pytorch files named at each text and row, and for ``mm`` DanielAvdar/tabnet#269, for ``linear``
Shakker-Labs/ComfyUI-IPAdapter-Flux#13, for ``cat`` callummcdougall/ARENA_2.0#21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from mpskit.simulation import messages
from mpskit.simulation.argument_limits import bind
from mpskit.simulation.coverage import calling_function

if TYPE_CHECKING:
    from torch._ops import OpOverload

__all__ = ["allowed", "check_linear", "check_mix"]


_ANY = frozenset({"*"})
_INDICES = frozenset({"indices"})
_MASK = frozenset({"mask"})
_LENGTHS = frozenset({"input_lengths", "target_lengths"})
_BATCH_SIZES = frozenset({"batch_sizes"})
_SCALARS = frozenset({"scalars"})
_STEPS = frozenset({"state_steps", "lr", "grad_scale", "found_inf"})

# operator -> its arguments that may be on the CPU
_ALLOWED: dict[str, frozenset[str]] = {
    # Copy.cpp, mps/operations/Copy.mm, ForeachUtils.h: copies between devices
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
    # mps/operations/Indexing.mm makes index tensors of the mask
    "aten::masked_scatter": _MASK,
    "aten::masked_scatter_": _MASK,
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

    Zero-dimensional tensors are never asked about: TensorIterator treats them as scalars, so the
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


# Is this tensor on the simulated device?
Has = Callable[[torch.Tensor], bool]

_TWO_DEVICES = (
    "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu!"
)
_ITERATED = frozenset(
    {"aten::cat", "aten::stack", "aten::isclose", "aten::allclose", "aten::nll_loss_forward"}
    # make_index_put_iterator in TensorAdvancedIndexing.cpp
    | {"aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
    | {"aten::masked_scatter", "aten::masked_scatter_"}
)
# dot_check in mps/operations/Blas.mm
_DOTS = frozenset({"aten::dot", "aten::vdot"})
# Blas: the kernel's name as it stands in LinearAlgebra.mm -> its arguments in torch's order.
_BLAS = {
    "aten::mm": ("mm", ("mat1", "mat2"), 1),
    "aten::addmm": ("addmm_out_mps_impl", ("self", "mat1", "mat2"), 1),
}
_LINEAR = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex32}
)
_TYPES = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16"}


def check_mix(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], has: Has) -> None:
    """Raise torch's error for an argument that is on the CPU and may not be.

    Raises:
        RuntimeError: with the text that a Mac's torch has; NotImplementedError where the operator
            of a CPU argument's device is called, and MPS has none.
    """
    for position, name, tensor in _on_cpu(func, args, kwargs, has):
        if allowed(func, name) or _is_assignment(func, name):
            continue
        if func._schema.name == "aten::convolution" and name == "input":
            raise _convolution_of_cpu_input(bind(func, args, kwargs))
        raise RuntimeError(_text(func, position, name, tensor))


def _is_assignment(func: Any, name: str) -> bool:
    """Return whether ``x[index] = 1.0`` reached a kernel that it uses within one device only.

    With an index on the CPU it moves the index, or takes ``index_put_`` (TensorIndexing.h).
    """
    argument = {"aten::masked_fill_": "mask", "aten::index_fill_": "index"}.get(func._schema.name)
    return name == argument and calling_function() == "__setitem__"


def _convolution_of_cpu_input(arguments: Mapping[str, Any]) -> RuntimeError:
    """Return the error of a convolution whose input alone is on the CPU.

    The input chooses the kernel, which then is the CPU's, and the dispatcher looks for it on MPS
    because of the weight (_select_conv_backend in Convolution.cpp). Only the plain one is
    registered there, for its text (MPSFallback.mm). Wheels for Apple silicon have no oneDNN, which
    would come first and say "Input type (torch.FloatTensor) and weight type (MPSFloatType)".
    """
    dimensions = max(2, len(arguments["stride"]))  # 1-D convolutions run as 2-D ones
    if arguments["transposed"]:
        kernel = f"slow_conv_transpose{dimensions}d"
    elif any(step != 1 for step in arguments["dilation"]):
        kernel = f"slow_conv_dilated{dimensions}d"
    elif dimensions == 3:
        kernel = "slow_conv3d_forward"
    else:
        return RuntimeError(messages.slow_convolution())
    text = messages.missing_operator(
        f"aten::{kernel}", str(torch.__version__), str(torch.version.git_version)
    )
    return NotImplementedError(text)


def check_linear(has: Has, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise what ``F.linear`` raises on MPS, where it has a kernel of its own (Linear.mm).

    The CPU's linear is ``t`` and ``addmm`` by the time an operator is dispatched.

    Raises:
        RuntimeError: with the text that a Mac's torch has.
    """
    given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
    on_mac = {name: has(tensor) for name, tensor in tensors.items()}
    if not any(on_mac.values()):
        return
    for name, tensor in tensors.items():
        if name != "bias" and tensor.dtype not in _LINEAR:
            kind = "inputs" if name == "input" else "weights"
            raise RuntimeError(f"MPS device does not support linear for non-float {kind}")
        if not on_mac[name]:
            raise RuntimeError(f"Tensor for argument {name} is on cpu but expected on mps")


def _convolution_text(name: str, dtype: torch.dtype) -> str:
    """Return the text of check_input_same_type_as_parameters in Convolution.cpp."""
    kind = _TYPES.get(dtype, "Float")
    return f"Input type (MPS{kind}Type) and {name} type (torch.{kind}Tensor) should be the same"


def _on_cpu(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], has: Has
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Yield position, name and tensor of each argument that holds a CPU tensor with dimensions."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for position, name in enumerate(names):
        value = given.get(name)
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, torch.Tensor) and part.dim() and not has(part):
                yield position, name, part


def _text(func: Any, position: int, name: str, tensor: torch.Tensor) -> str:
    operator = func._schema.name
    if operator in _BLAS:
        kernel, names, first = _BLAS[operator]
        number = names.index(names[position]) + first
        return (
            f"Tensor for argument #{number} '{names[position]}' is on CPU, but expected it to be "
            f"on GPU (while checking arguments for {kernel})"
        )
    if operator == "aten::convolution":
        return _convolution_text(name, tensor.dtype)
    if operator in _DOTS:
        found = ("mps:0", "cpu") if position else ("cpu", "mps:0")
        return f"Expected all tensors to be on the same device. Found: {', '.join(found)}"
    if operator.startswith("aten::masked_fill") and name == "mask":
        return (
            "expected self and mask to be on the same device, but got mask on cpu and self on mps:0"
        )
    if torch.Tag.pointwise in func.tags or operator in _ITERATED:
        return _TWO_DEVICES
    return messages.placeholder_storage()
