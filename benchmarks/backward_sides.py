"""Whether each backward runs on its own device when work on the CPU and on ``mps`` interleaves.

    python benchmarks/backward_sides.py [--dtype float32 ...] [--ops N] [--samples N]

For every OpInfo of torch's ``op_db`` that has a gradient, the sample inputs run forward on the CPU
and on a simulated ``mps``. Then four backwards follow: each right after work on the other device,
and each from a loss on the other device. The yardstick is the backward of the CPU outside of any
simulation. Unexpected is a CPU backward that fails or has other gradients, and an mps one that
fails, except for an operator that a Mac lacks (NotImplementedError), or whose gradients have
another device or other values.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "0")

MACHINE = "m3-max-64gb"
DTYPES = ("float32", "float16")
LACKING = (NotImplementedError, TypeError)


def cases(dtype: Any, count: int | None) -> Iterator[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    for info in itertools.islice(op_db, count):
        if info.supports_autograd and dtype in info.supported_backward_dtypes("cpu"):
            yield info


def examine(info: Any, dtype: Any, count: int) -> Iterator[str]:
    """Yield what is unexpected of one operator."""
    try:
        samples = info.sample_inputs("cpu", dtype, requires_grad=True)
        samples = list(itertools.islice(samples, count))
    except Exception:
        return
    for number, sample in enumerate(samples):
        for problem in _examined(info, sample):
            yield f"{info.formatted_name} {dtype} sample {number}: {problem}"


def _examined(info: Any, sample: Any) -> Iterator[str]:
    import mpskit

    try:
        expected = Run(info, sample, "cpu").gradients()
    except Exception:
        return
    with mpskit.simulate(MACHINE):
        for other in (False, True):
            yield from _problems(info, sample, expected, other=other)


def _problems(info: Any, sample: Any, expected: Any, *, other: bool) -> Iterator[str]:
    runs = [(device, _forward(info, sample, device, other=other)) for device in ("mps", "cpu")]
    for device, run in runs:
        if run is None:
            continue
        _work("cpu" if device == "mps" else "mps")
        name = f"{device}, loss on the {'other' if other else 'same'} device"
        try:
            found = run.gradients()
        except NotImplementedError as error:
            if device == "cpu":
                yield f"{name}: {error!r}"
        except Exception as error:
            yield f"{name}: {type(error).__name__} {str(error)[:160]}"
        else:
            yield from (f"{name}: {text}" for text in _differences(found, expected, device))


def _forward(info: Any, sample: Any, device: str, *, other: bool) -> Run | None:
    """Return a forward pass, or None where it fails: that is another benchmark's (fidelity.py)."""
    try:
        return Run(info, sample, device, other=other)
    except (*LACKING, RuntimeError):
        return None


def _work(device: str) -> None:
    """Let the last operator be one of another device."""
    import torch

    torch.ones(2, device=device) + 1


def _differences(found: Sequence[Any], expected: Sequence[Any], device: str) -> Iterator[str]:
    import torch

    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        if (one is None) != (other is None):
            yield f"gradient {at} is {'missing' if one is None else 'not missing'}"
        elif one is not None and one.device.type != device:
            yield f"gradient {at} is on {one.device}"
        elif one is not None and not torch.allclose(
            one.cpu().to_dense(), other.to_dense(), rtol=1e-2, atol=1e-3, equal_nan=True
        ):
            yield f"gradient {at} has other values"


class Run:
    """One forward pass that waits for its backward."""

    def __init__(self, info: Any, sample: Any, device: str, *, other: bool = False) -> None:
        import torch

        self._leaves: list[Any] = []
        moved = sample.transform(lambda value: self._leaf(value, device))
        torch.manual_seed(0)
        result = info.op(moved.input, *moved.args, **moved.kwargs)
        if sample.output_process_fn_grad is not None:
            result = sample.output_process_fn_grad(result)
        parts = torch.utils._pytree.tree_leaves(result)
        outputs = [t for t in parts if isinstance(t, torch.Tensor) and t.requires_grad]
        if other:
            outputs = [t.to("mps" if device == "cpu" else "cpu") for t in outputs]
        self._outputs = outputs
        self._weights = [torch.ones_like(t) for t in outputs]

    def _leaf(self, value: Any, device: str) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return value
        leaf = value.detach().clone().to(device).requires_grad_(value.requires_grad)
        self._leaves.append(leaf)
        return leaf

    def gradients(self) -> list[Any]:
        import torch

        leaves = [leaf for leaf in self._leaves if leaf.requires_grad]
        if not leaves or not self._outputs:
            return []
        return list(torch.autograd.grad(self._outputs, leaves, self._weights, allow_unused=True))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", nargs="*", default=DTYPES)
    parser.add_argument("--ops", type=int, help="only the first so many")
    parser.add_argument("--only", help="only operators whose name holds this")
    parser.add_argument("--samples", type=int, default=6)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    tried, problems = 0, 0
    for name in arguments.dtype:
        dtype = getattr(torch, name)
        for info in cases(dtype, arguments.ops):
            if arguments.only and arguments.only not in info.formatted_name:
                continue
            tried += 1
            for problem in examine(info, dtype, arguments.samples):
                problems += 1
                print(problem, flush=True)
    print(f"{tried} operators with a dtype, {problems} unexpected, torch {torch.__version__}")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
