"""A loop in plain PyTorch that follows a plan; resnet_cifar.py and lstm_forecast.py use it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpskit
from mpskit import TrainingPlan

T = TypeVar("T")
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def arguments(about: str, out: str, **counts: int) -> argparse.ArgumentParser:
    """Return a parser with what both examples take: numbers, --out and --resume."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--resume", action="store_true", help="go on from OUT's checkpoint")
    for name, default in counts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser


def bar(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items and draw how far they are; off a terminal a line at the end."""
    for index, item in enumerate(items, 1):
        yield item
        line = f"{label} [{'#' * (30 * index // total):<30}] {index}/{total}"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if index == total else "", file=sys.stderr, flush=True)
        elif index == total:
            print(line, file=sys.stderr, flush=True)


def fit(
    plan: TrainingPlan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: TensorDataset,
    loss_of: Loss,
    *,
    epochs: int,
    checkpoint: Path,
    resume: bool = False,
    picture: Path | None = None,
) -> list[float]:
    """Train as planned; return the mean loss of each epoch, those before a resume included.

    Raises:
        OutOfMemory: the step does not fit; its ``next_plan`` is the plan to try next.
    """
    losses: list[float] = []
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=plan.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"]
    scaler = mpskit.grad_scaler(plan.device, plan.autocast_dtype or "float32")
    with capped(plan), plan.watch(interval=0.05) as watch:
        for epoch in range(len(losses), epochs):
            losses.append(one_epoch(plan, model, optimizer, data, loss_of, scaler, watch, epoch))
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"losses": losses}, checkpoint)
    print(watch.monitor)
    if picture is not None:
        with contextlib.suppress(mpskit.MissingExtraError):
            print(f"memory: {watch.plot(picture)}")
    return losses


def learnt(losses: list[float]) -> bool:
    """Return whether the loss fell; one figure says nothing against it."""
    return len(losses) == 1 or losses[-1] < losses[0]


def capped(plan: TrainingPlan) -> Any:
    """Return a cap at the plan's figure; the CPU's memory is not the model's alone."""
    if plan.device == "cpu":
        return contextlib.nullcontext()
    return mpskit.limit_memory(plan.cap_bytes, plan.device)


def one_epoch(
    plan: TrainingPlan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: TensorDataset,
    loss_of: Loss,
    scaler: Any,
    watch: Any,
    epoch: int,
) -> float:
    """Pass over the data once; the optimizer steps after ``plan.accumulate`` batches."""
    loader = DataLoader(data, shuffle=True, drop_last=True, **plan.loader)
    total = torch.zeros((), device=plan.device)
    for index, batch in enumerate(bar(loader, len(loader), f"epoch {epoch + 1}"), 1):
        inputs, targets = mpskit.to_device(batch, plan.device)
        with mpskit.autocast(plan.device, plan.autocast_dtype or "float32"):
            loss = loss_of(model(inputs), targets)
        scaler.scale(loss / plan.accumulate).backward()
        total += loss.detach()
        if index % plan.accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            watch.step()
    return total.item() / len(loader)  # one transfer an epoch
