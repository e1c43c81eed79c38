"""What ``torch.autocast("mps")`` does to the arguments of each operator.

Source: the AutocastMPS registrations of aten/src/ATen/autocast_mode.cpp and the lists in
autocast_mode.h.
"""

from __future__ import annotations

__all__ = ["cast_policy"]


def cast_policy(func: object) -> str | None:
    """Return "lower", "fp32", "promote" for a torch function, or None where autocast is silent.

    Args:
        func: the callable that a torch function mode receives, or its name.
    """
    name = func if isinstance(func, str) else getattr(func, "__name__", "")
    return _POLICY.get(str(name))


_POLICY = dict.fromkeys(("matmul", "linear", "mm", "bmm", "addmm"), "lower")
