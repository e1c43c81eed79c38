"""The texts of torch's own MPS errors and warnings, by torch version.

Sources: the strings of libtorch_cpu.dylib in torch's macOS wheels (2.0.1 to 2.15.0) and, where a
sentence is put together from pieces, the pytorch source file named beside it. Every function is
pure: it returns the text, and the caller chooses the type named in its docstring.
"""

from __future__ import annotations

from mpskit.backends.versions import has

__all__ = [
    "distributed_operator",
    "fallback",
    "missing_operator",
    "not_for_backend",
    "placeholder_storage",
    "slow_convolution",
    "too_many_dimensions",
]

_FIX = (
    "As a temporary fix, you can set the environment variable `PYTORCH_ENABLE_MPS_FALLBACK=1` "
    "to use the CPU as a fallback for this op. WARNING: this will be slower than running natively "
    "on MPS."
)
_OLD_TRACKER = (
    "If you want this op to be added in priority during the prototype phase of this feature, "
    "please comment on https://github.com/pytorch/pytorch/issues/77764. "
)
_TRACKER = (
    "If you want this op to be considered for addition please comment on "
    "https://github.com/pytorch/pytorch/issues/141287 and mention use-case, that resulted in "
    "missing op as well as commit hash {commit}. "
)


def missing_operator(name: str, torch_version: str, commit: str) -> str:
    """Return the NotImplementedError text for an operator without an MPS kernel.

    Args:
        name: operator with overload, as ``"aten::mode"`` or ``"aten::kthvalue.values"``.
        torch_version: decides between the two texts (2.6 began to ask for the commit hash).
        commit: ``torch.version.git_version``.

    Source: mps_error_fallback in aten/src/ATen/mps/MPSFallback.mm.
    """
    tracker = _tracker(torch_version, commit)
    return f"The operator '{name}' is not currently implemented for the MPS device. {tracker}{_FIX}"


def _tracker(torch_version: str, commit: str) -> str:
    asks_for_commit = has("mps.missing_text.commit", torch_version)
    return _TRACKER.format(commit=commit) if asks_for_commit else _OLD_TRACKER


def distributed_operator(name: str, torch_version: str, commit: str) -> str:
    """Return the NotImplementedError text for a c10d operator (torch >= 2.11, pytorch#173954)."""
    return (
        f"The distributed operator '{name}' is not currently implemented for the MPS device. "
        f"{_tracker(torch_version, commit)}"
        "Please note, that distributed operators can not fall back to CPU"
    )


def fallback(name: str) -> str:
    """Return the UserWarning that torch gives once, for the first operator that falls back.

    Source: mps_fallback in MPSFallback.mm (TORCH_WARN_ONCE at one place, so one for a process).
    """
    return (
        f"The operator '{name}' is not currently supported on the MPS backend and will fall back "
        "to run on the CPU. This may have performance implications."
    )


def not_for_backend(name: str, backend: str) -> str:
    """Return the NotImplementedError text for an operator and a backend that it has no kernel for.

    It lacks the list of backends that torch appends. Source: reportError in
    aten/src/ATen/core/dispatch/OperatorEntry.cpp.

    Args:
        name: operator with overload, as ``"aten::empty.memory_format"``.
        backend: dispatch key, as ``"SparseMPS"``.
    """
    return (
        f"Could not run '{name}' with arguments from the '{backend}' backend. This could be "
        "because the operator doesn't exist for this backend, or was omitted during the "
        "selective/custom build process (if using custom build). If you are a Facebook employee "
        "using PyTorch on mobile, please visit https://fburl.com/ptmfixes for possible resolutions."
    )


def placeholder_storage() -> str:
    """Return the RuntimeError text of an MPS graph that meets a CPU tensor.

    Source: Placeholder::Placeholder in aten/src/ATen/native/mps/OperationUtils.mm.
    """
    return "Placeholder storage has not been allocated on MPS device!"


def slow_convolution() -> str:
    """Return the RuntimeError text of a convolution with its input on the CPU, its weight not.

    Source: slow_conv2d_forward_mps in aten/src/ATen/mps/MPSFallback.mm, quote and blanks included.
    """
    return (
        "slow_conv2d_forward_mps: input(device='cpu') and weight(device=mps:0')  must be on the "
        "same device"
    )


def too_many_dimensions(dimensions: int) -> str:
    """Return the RuntimeError text for a tensor of more than 16 dimensions.

    Source: empty_mps in aten/src/ATen/mps/EmptyTensor.cpp.
    """
    return f"MPS supports tensors with dimensions <= 16, but got {dimensions}."
