"""What a plan starts from: ``data/training_defaults.toml`` as rules by name, device and version."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

from mpskit._base.arguments import shown
from mpskit._base.data import read_toml
from mpskit.backends.versions import older
from mpskit.errors import ArgumentError

__all__ = [
    "STAGES",
    "Optimizer",
    "Stage",
    "defaults",
    "optimizer_for",
    "quantizations",
    "stage_epochs",
]

Stage = Literal["development", "test", "production"]
STAGES: tuple[Stage, ...] = ("development", "test", "production")


class Optimizer(NamedTuple):
    """An optimizer of torch that stands for one that was asked for.

    Attributes:
        name: in torch.optim, lower case.
        reason: why another one than was asked for; empty if it is the same.
    """

    name: str
    reason: str


def defaults(table: str) -> Mapping[str, Any]:
    """Return a table of the file."""
    found: Mapping[str, Any] = read_toml("training_defaults.toml")[table]
    return found


def optimizer_for(name: str, device: str) -> Optimizer:
    """Return torch's optimizer for a name of torch.optim or of transformers.

    Args:
        name: ``adamw``, or a trainer's name such as ``paged_adamw_8bit``.
        device: where it runs.

    Raises:
        ArgumentError: nobody knows the name.
    """
    wanted, table = name.strip().lower(), defaults("optimizers")
    cuda_only: Mapping[str, str] = table["cuda_only"]
    if wanted in cuda_only:
        stand_in = cuda_only[wanted]
        if device != "cuda":
            return Optimizer(stand_in, f"{name} needs CUDA; torch's {stand_in} runs on {device}")
        return Optimizer(
            stand_in,
            f"{name} keeps its states in 8 bits or pages them out; the figures are "
            f"{stand_in}'s, which keeps more",
        )
    known: Mapping[str, str] = table["torch"]
    if wanted in known or wanted in table["trainer"]:
        return Optimizer(known.get(wanted, wanted), "")
    names = sorted({*known, *table["trainer"], *cuda_only})
    raise ArgumentError(f"no optimizer {shown(name)}: one of {', '.join(names)}", given=name)


def quantizations(device: str) -> tuple[str, ...]:
    """Return the quantized dtypes that frozen weights can be trained on with what is installed."""
    return tuple(row["base"] for row in _rows() if _runs(row, device))


def missing_quantization(device: str) -> str | None:
    """Return what to install for 4-bit weights on a device; None if nothing helps or is missing."""
    for row in _rows():
        since = row["devices"].get(device)
        if row["base"] == "nf4" and since is not None and not _runs(row, device):
            return f"{row['package']}>={since}"
    return None


def _rows() -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = read_toml("training_defaults.toml")["quantization"]
    return rows


def _runs(row: Mapping[str, Any], device: str) -> bool:
    since = row["devices"].get(device)
    if since is None:
        return False
    try:
        return not older(version(row["package"]), since)
    except PackageNotFoundError:
        return False


def stage_epochs(stage: Stage) -> int:
    """Return how many passes over the data a stage of a project takes.

    Raises:
        ArgumentError: there is no such stage.
    """
    table = defaults("stage")
    if stage not in table:
        raise ArgumentError(f"no stage {shown(stage)}: one of {', '.join(table)}", given=stage)
    return int(table[stage]["epochs"])
