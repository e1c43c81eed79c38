"""Operators, dtypes, autocast's lists and known bugs: what runs, and in which precision."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpskit.allocator.watermarks import FALLBACK
from mpskit.backends.versions import torch_version
from mpskit.correctness.check_device import Outcome as IssueOutcome
from mpskit.correctness.check_device import check_device
from mpskit.dispatch.autocast_lists import cast_policy
from mpskit.host import detect_host
from mpskit.simulation.coverage import Coverage, Status
from mpskit.system.machine import replaced_readings
from mpskit.training.precision import precision_for
from mpskit.validation.claims import compared, not_tried
from mpskit.validation.report import Finding

__all__ = ["autocast_lists", "dtypes", "issues", "operators"]

_OPS = torch.ops.aten


def _square(device: str) -> torch.Tensor:
    return torch.eye(4, device=device) + 1.0


# Operators on both sides of the line in some torch since 2.2, each called on a small matrix.
OPERATORS: dict[Any, Callable[[torch.Tensor], Any]] = {
    _OPS.mm.default: lambda x: x @ x,
    _OPS.convolution.default: lambda x: torch.conv2d(x[None, None], x[None, None, :3, :3]),
    _OPS._softmax.default: lambda x: x.softmax(0),
    _OPS.sort.default: lambda x: x.sort(),
    _OPS.topk.default: lambda x: x.topk(2),
    _OPS.cumsum.default: lambda x: x.cumsum(0),
    _OPS.linalg_eig.default: torch.linalg.eig,
    _OPS._linalg_eigh.default: torch.linalg.eigh,
    _OPS._linalg_svd.default: torch.linalg.svd,
    _OPS.linalg_qr.default: torch.linalg.qr,
    _OPS.linalg_cholesky_ex.default: torch.linalg.cholesky_ex,
    _OPS.linalg_inv_ex.default: torch.linalg.inv,
    _OPS.linalg_lu_factor_ex.default: torch.linalg.lu_factor,
    _OPS.geqrf.default: torch.geqrf,
    _OPS.kthvalue.default: lambda x: x.kthvalue(1),
    _OPS.mode.default: lambda x: x.mode(),
    _OPS.cummax.default: lambda x: x.cummax(0),
    _OPS.histc.default: lambda x: torch.histc(x, 4),
    _OPS.erfinv.default: lambda x: (x / 9).erfinv(),
    _OPS.digamma.default: torch.digamma,
    _OPS.igamma.default: lambda x: torch.igamma(x, x),
    _OPS.special_bessel_j0.default: torch.special.bessel_j0,
    _OPS.segment_reduce.default: lambda x: torch.segment_reduce(
        x, "sum", lengths=torch.tensor([2, 2], device=x.device)
    ),
    _OPS._ctc_loss.default: lambda x: torch.ops.aten._ctc_loss(
        x[:, None].log_softmax(2), torch.tensor([[1]], device=x.device), [4], [1]
    ),
}


def operators(device: str) -> Iterator[Finding]:
    """Which of two dozen operators have a kernel, against the table."""
    check = "operators"
    if torch.device(device).type != "mps":
        yield not_tried(check, "operators without a kernel", "the table is of MPS")
        return
    if os.environ.get(FALLBACK, "0") != "0":
        yield not_tried(check, "operators without a kernel", f"{FALLBACK} is on, which hides them")
        return
    known = Coverage(str(torch_version()), detect_host().os_version or "")
    for op, call in OPERATORS.items():
        name = op.name().removeprefix("aten::").removesuffix(".default")
        said = "no kernel" if known.status(op) is Status.MISSING else "a kernel"
        yield compared(check, name, said, _tried(call, device))


def _tried(call: Callable[[torch.Tensor], Any], device: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some kernels warn that they run on the CPU
        try:
            call(_square(device))
        except NotImplementedError:
            return "no kernel"
    return "a kernel"


def dtypes(device: str) -> Iterator[Finding]:
    """Which dtypes the device holds, against the table."""
    check = "dtypes"
    holds = precision_for(device).storage_dtypes
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        said = "supported" if name in holds else "refused"
        try:
            torch.ones(4, 4, dtype=dtype, device=device).matmul(
                torch.ones(4, 4, dtype=dtype, device=device)
            )
            found = "supported"
        except (TypeError, RuntimeError):
            found = "refused"
        yield compared(check, name, said, found)


_LISTED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "matmul": lambda x: torch.matmul(x, x),
    "linear": lambda x: torch.nn.functional.linear(x, x),
    "conv2d": lambda x: torch.nn.functional.conv2d(x[None, None], x[None, None]),
    "softmax": lambda x: torch.softmax(x, 0),
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (4,)),
    "sum": lambda x: torch.sum(x),
    "exp": lambda x: torch.exp(x),
    "cat": lambda x: torch.cat([x, x]),
    "relu": lambda x: torch.relu(x),
    "gelu": lambda x: torch.nn.functional.gelu(x),
}


def autocast_lists(device: str) -> Iterator[Finding]:
    """The dtype of ten functions' results under autocast in float16, against the lists."""
    check = "autocast"
    if torch.device(device).type != "mps":
        yield not_tried(check, "autocast's lists", "the lists are of MPS")
        return
    for name, call in _LISTED.items():
        policy = cast_policy(name)
        for given in (torch.float32, torch.float16):
            said = {"lower": torch.float16, "fp32": torch.float32}.get(policy or "", given)
            with torch.autocast(device_type="mps", dtype=torch.float16):
                found = call(_square(device).to(given)).dtype
            yield compared(check, f"{name} of {given}", said, found)


def issues(device: str) -> Iterator[Finding]:
    """Whether the known bugs that can be tried show where they are expected, and nowhere else."""
    check, simulated = "known-issues", replaced_readings() is not None
    for tried in check_device(device).checks:
        if tried.outcome is IssueOutcome.UNTRIED:
            yield not_tried(check, tried.key, tried.detail)
            continue
        affected = tried.outcome is IssueOutcome.AFFECTED
        # A simulated Mac computes right on the CPU, whatever its real one does.
        expected = tried.listed and not simulated
        said, found = (("affected" if yes else "not affected") for yes in (expected, affected))
        yield compared(check, tried.key, said, found)
