"""``mpskit estimate FILE.py:NAME``: how much memory a model needs, before it runs."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpskit._base.data import read_toml
from mpskit.backends.kinds import ESTIMATED
from mpskit.cli.json_output import print_json
from mpskit.errors import ArgumentError
from mpskit.estimate.precisions import PRECISIONS

if TYPE_CHECKING:
    from mpskit.estimate import MemoryEstimate, Verdict

__all__ = ["add_arguments", "run"]

_BATCH_HELP = (
    "the batch: name=dtype[sizes] for arguments by name, or dtype[sizes] by position, such as "
    "input_ids=int64[1,512] labels=int64[1,512]"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = "FILE.py is run, as `python FILE.py` would run it, and NAME is taken from it."
    parser.add_argument(
        "model",
        metavar="FILE.py:NAME",
        help="a callable, class or model in a Python file; the file is run",
    )
    parser.add_argument("--batch", nargs="+", required=True, metavar="TENSOR", help=_BATCH_HELP)
    parser.add_argument("--inference", action="store_true", help="no gradients and no optimizer")
    parser.add_argument("--generate", type=int, metavar="N", help="inference: decode N tokens")
    parser.add_argument("--optimizer", choices=[*_optimizers(), "none"], default="adamw")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N")
    parser.add_argument("--device", choices=ESTIMATED, default="mps")
    parser.add_argument("--machine", metavar="NAME", help="say whether it fits, such as m1-16gb")
    parser.add_argument("--plot", metavar="PATH", help="draw the timeline (needs mpskit[plot])")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate; 1 when it does not fit the machine."""
    batch = _batch(arguments.batch)
    _progress(f"running {arguments.model.rpartition(':')[0]}")
    model = _load(arguments.model)
    _progress("tracing the step")
    estimate = _estimate(arguments, model, batch)
    _progress("")
    verdict = estimate.fits(arguments.machine) if arguments.machine else None
    if arguments.plot:
        estimate.plot(arguments.plot)
    _show(arguments, estimate, verdict)
    return 1 if verdict is not None and not verdict else 0


def _show(arguments: argparse.Namespace, estimate: MemoryEstimate, verdict: Verdict | None) -> None:
    if arguments.json:
        payload = estimate.model_dump(mode="json")
        answer = verdict.model_dump(mode="json") if verdict is not None else None
        print_json("estimate", {**payload, "machine": arguments.machine, "verdict": answer})
        return
    print(estimate)
    if verdict is not None:
        print(f"{arguments.machine}: {verdict}")
    if arguments.plot:
        print(f"timeline drawn in {arguments.plot}")


def _estimate(arguments: argparse.Namespace, model: Any, batch: Any) -> MemoryEstimate:
    from mpskit.estimate import estimate_inference_memory, estimate_training_memory

    if arguments.inference or arguments.generate is not None:
        return estimate_inference_memory(
            model, batch, generate=arguments.generate, device=arguments.device
        )
    return estimate_training_memory(
        model,
        batch,
        optimizer=_optimizer(arguments.optimizer),
        precision=arguments.precision,
        accumulate=arguments.accumulate,
        device=arguments.device,
    )


def _optimizers() -> Mapping[str, Any]:
    return read_toml("optimizers.toml")


def _optimizer(name: str) -> Any:
    import torch

    row = _optimizers().get(name)
    return getattr(torch.optim, row["class"]) if row else None


def _batch(words: list[str]) -> Any:
    """Return a dict for ``name=dtype[sizes]`` words, else a tuple, or the one tensor itself."""
    from mpskit.estimate.specs import parse_spec

    named = [word.partition("=") for word in words]
    if all(name.isidentifier() and rest for name, _, rest in named):
        return {name: parse_spec(rest) for name, _, rest in named}
    tensors = tuple(parse_spec(word) for word in words)
    return tensors[0] if len(tensors) == 1 else tensors


def _load(target: str) -> Any:
    """Run a file and return the object of that name.

    Raises:
        ArgumentError: there is no such file, or no such name in it.
    """
    path, _, name = target.rpartition(":")
    if not path or not Path(path).is_file():
        raise ArgumentError(f"{target!r} is not FILE.py:NAME with an existing file", given=target)
    sys.path.insert(0, str(Path(path).resolve().parent))
    found = runpy.run_path(path)
    if name not in found:
        known = ", ".join(sorted(key for key in found if not key.startswith("_"))[:10])
        raise ArgumentError(f"{path} has no {name!r}; it has {known}", given=target)
    return found[name]


def _progress(text: str) -> None:
    """Show on a terminal what takes time; the next call overwrites the line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
