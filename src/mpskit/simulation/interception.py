"""Operators below autograd, without torch noticing that somebody looks.

The simulated Mac and the estimator get hold of operators in the same way (see
``mpskit.dispatch.intercept``): torch takes one fallback for a dispatch key, and a
``TorchDispatchMode`` would lead torch's C++ into detours (``isTensorSubclassLike``: out of place
instead of in place, ``linalg_eig`` instead of ``linalg_eigvals``) that a real run never takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mpskit.dispatch import intercept as interception

__all__ = ["seen_again"]


@contextlib.contextmanager
def seen_again() -> Iterator[None]:
    """Let the operators of the block be seen although a handler is running."""
    key = interception.registered_key()
    if key is None:
        yield
        return
    include = torch._C._dispatch_tls_local_include_set() | torch._C.DispatchKeySet(key)
    exclude = torch._C._dispatch_tls_local_exclude_set().remove(key)
    with torch._C._ForceDispatchKeyGuard(include, exclude):
        yield
