"""Finding a batch size: mpskit beside accelerate's and Lightning's search, on a simulated Mac.

    python benchmarks/bench_batch.py

Each way is given the same job, a model trained for three steps with AdamW, on the same simulated
Mac and allocator: a rehearsal (``mpskit.rehearse(strict=True)``), in which tensors have no numbers
and an allocation over the limit raises MPS's own error. Every step that a way runs is noted. The
largest batch that fits is found by trying the job itself with one size after the other.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
import transformers
from accelerate.utils import find_executable_batch_size
from lightning.pytorch.tuner import Tuner
from results import Column, Plot, Row, Section, Size, Table, script
from torch import nn

import mpskit
from mpskit import TensorSpec, max_batch_size, run_with_batch_size

STEPS = 3  # as Lightning's scaler runs by default
OURS = "mpskit `run_with_batch_size`"
MACHINE = "m1-8gb"
# macOS recommends 2/3 of its memory; torch allows 1.7 times that, more than the Mac has.
DEFAULT_RATIO = 1.7
LIMITS = {"torch's own limit": None, "the recommended memory": 1.0, "half of that": 0.5}
NOTES = (
    (
        "Every way has the same job: a model trained for three steps with AdamW on a simulated M1 "
        "with 8 GB, in a rehearsal: the tensors have no numbers, and what does not fit raises "
        "MPS's own error. The largest size was found by trying the job itself: by halving, and 24 "
        "sizes up to a tenth above, because heaps are whole and a larger batch may fit where a "
        "smaller one does not. No share is shown of a size that did not fit, or where none was "
        "found."
    ),
    (
        "mpskit and accelerate are given the power of two above the largest to start from; "
        "accelerate goes down by a tenth, so that each doubling of the start costs it seven more "
        "steps. Lightning starts from 2. *Steps thrown away* are all that were begun, without the "
        "three of the training that mpskit and accelerate end with, those that mpskit aborts at "
        "their optimizer included; Lightning trains afterwards."
    ),
    (
        "`max_batch_size` is given the limit in bytes and runs no step. It leaves "
        "room for the allocator's heaps, which are whole, and a tenth; `tight=True` counts the "
        "tensors at the peak alone, which heaps do not hold."
    ),
    (
        "Lightning (2.6) does not know MPS's out-of-memory error, so as it is the first one ends "
        "its search. To compare its search, the module of the other rows raises the error with the "
        "text `CUDA out of memory`, which Lightning knows; nothing else is changed. Where it still "
        "found none, the next tensor that it asked for while it handled the error did not fit, as "
        "the error still referred to the failed step's tensors. `binsearch` "
        "takes 5% off what it found. The CPU time is that of steps without numbers, and says "
        "little of a Mac."
    ),
)


def mlp() -> nn.Module:
    layers = (part for _ in range(8) for part in (nn.Linear(1024, 1024), nn.GELU()))
    return nn.Sequential(*layers, nn.Linear(1024, 10))


def convolutions() -> nn.Module:
    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]

    blocks = [*block(3, 32), *block(32, 64), *block(64, 128), *block(128, 256)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


class Transformer(nn.Module):
    """A small GPT-2 that classifies."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.GPT2Config(n_layer=4, n_embd=256, n_head=4, use_cache=False)
        self.net, self.head = transformers.GPT2Model(config), nn.Linear(256, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(ids).last_hidden_state)


@dataclass(frozen=True)
class Job:
    """A model and the shape of one row of its batch."""

    name: str
    make: Callable[[], nn.Module]
    row: tuple[int, ...]
    dtype: str = "float32"

    def batch(self, rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(rows, dtype=torch.int64, device=device)
        shape, dtype = (rows, *self.row), getattr(torch, self.dtype)
        return torch.zeros(shape, dtype=dtype, device=device), labels

    def spec(self) -> tuple[TensorSpec, TensorSpec]:
        return TensorSpec((1, *self.row), self.dtype), TensorSpec((1,), "int64")


JOBS = (
    Job("MLP", mlp, (64, 1024)),
    Job("convolutions", convolutions, (3, 128, 128)),
    Job("transformer", Transformer, (256,), "int64"),
)


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    told = model(batch[0])
    told = told.mean(1) if told.dim() == 3 else told
    return nn.functional.cross_entropy(told, batch[1])


@dataclass
class Log:
    """The batch size of every step that was begun, and how many ran out of memory."""

    begun: list[int] = field(default_factory=list)
    failed: int = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Count an out-of-memory error."""
        try:
            yield
        except RuntimeError as error:
            self.failed += is_oom(error)
            raise


def training(job: Job, log: Log) -> Callable[[int], int]:
    """Return the function that a way may call with a batch size: the whole training."""

    def train(batch_size: int) -> int:
        model = job.make().to("mps")
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(STEPS):
            log.begun.append(batch_size)
            with log.watched():
                loss_of(model, job.batch(batch_size, "mps")).backward()
                optimizer.step()
                optimizer.zero_grad()
        return batch_size

    return train


@contextlib.contextmanager
def mac(limit: float | None) -> Iterator[None]:
    """Be on the simulated Mac with this share of its recommended memory as the limit."""
    with mpskit.rehearse(MACHINE, steps=None, strict=True, write=True):
        if limit is not None:
            torch.mps.set_per_process_memory_fraction(limit)
        yield


def fits(job: Job, rows: int) -> bool:
    """Try a size for the three steps."""
    gc.collect()
    torch.mps.empty_cache()
    try:
        training(job, Log())(rows)
    except RuntimeError as error:
        if not is_oom(error):
            raise
        return False
    return True


def is_oom(error: BaseException) -> bool:
    return "MPS backend out of memory" in str(error) or "Invalid buffer size" in str(error)


def largest(job: Job) -> int:
    """Return the largest size that fits: by halving, then 24 sizes up to a tenth above it."""
    low = 1
    while fits(job, 2 * low):
        low *= 2
    high = 2 * low
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(job, middle) else (low, middle)
    # A larger size may fit where a smaller one does not: the allocator's heaps are whole.
    above = sorted({low + max(1, low * i // 240) for i in range(1, 25)})
    return max([low, *(rows for rows in above if fits(job, rows))])


def ended_by_memory(search: Callable[[], int | None]) -> int | None:
    """Return what a search found; None if an out-of-memory error came through it."""
    try:
        return search()
    except RuntimeError as error:
        if not is_oom(error):
            raise
        return None


def by_mpskit(job: Job, start: int, log: Log) -> int:
    found: int = run_with_batch_size(training(job, log), start, device="mps")
    return found


def by_accelerate(job: Job, start: int, log: Log) -> int:
    found: int = find_executable_batch_size(training(job, log), starting_batch_size=start)()
    return found


class Rows(torch.utils.data.Dataset[Any]):
    """As many rows as are asked for at once."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __len__(self) -> int:
        return 2**20

    def __getitems__(self, rows: list[int]) -> Any:
        return self.job.batch(len(rows), "cpu")


class Trained(lightning.LightningModule):
    """A job for Lightning's Trainer; ``translated`` raises MPS's error in CUDA's words."""

    def __init__(self, job: Job, log: Log, *, translated: bool) -> None:
        super().__init__()
        self.net, self.job, self.log_of, self.translated = job.make(), job, log, translated
        self.batch_size = 2

    def training_step(self, batch: Any) -> torch.Tensor:
        self.log_of.begun.append(len(batch[1]))
        with self.words():
            return loss_of(self.net, batch)

    def backward(self, loss: torch.Tensor) -> None:
        with self.words():
            loss.backward()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        with self.words():
            super().optimizer_step(*args, **kwargs)

    def transfer_batch_to_device(self, *args: Any) -> Any:
        with self.words():
            return super().transfer_batch_to_device(*args)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())

    def train_dataloader(self) -> Any:
        rows = Rows(self.job)
        return torch.utils.data.DataLoader(rows, self.batch_size, collate_fn=lambda batch: batch)

    @contextlib.contextmanager
    def words(self) -> Iterator[None]:
        try:
            with self.log_of.watched():
                yield
        except RuntimeError as error:
            if not self.translated or not is_oom(error):
                raise
            raise RuntimeError("CUDA out of memory") from None


def by_lightning(mode: str, *, translated: bool) -> Callable[[Job, int, Log], int | None]:
    """Return Lightning's scaler in one of its modes."""

    def search(job: Job, _start: int, log: Log) -> int | None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = lightning.Trainer(
                accelerator="mps", devices=1, max_steps=STEPS, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                default_root_dir=folder,
            )  # fmt: skip
            module = Trained(job, log, translated=translated)
            return Tuner(trainer).scale_batch_size(module, mode=mode, steps_per_trial=STEPS)

    return search


# name -> how it searches, and whether its last steps are the training itself
WAYS: dict[str, tuple[Callable[[Job, int, Log], int | None], bool]] = {
    OURS: (by_mpskit, True),
    "accelerate `find_executable_batch_size`": (by_accelerate, True),
    "Lightning `power`, told in CUDA's words": (by_lightning("power", translated=True), False),
    "Lightning `binsearch`, told in CUDA's words": (
        by_lightning("binsearch", translated=True),
        False,
    ),
    "Lightning, as it is": (by_lightning("power", translated=False), False),
}
ESTIMATES = {"mpskit `max_batch_size`": False, "mpskit `max_batch_size(tight=True)`": True}


def searched(job: Job, limit: float | None, way: str, most: int) -> dict[str, Any]:
    """Let one way search, and return what it took."""
    search, trains = WAYS[way]
    log = Log()
    with mac(limit):
        started = time.process_time()
        found = ended_by_memory(lambda: search(job, 2 ** most.bit_length(), log))
        seconds = time.process_time() - started
    thrown = len(log.begun) - (STEPS if trains else 0)
    sizes = len(list(itertools.groupby(log.begun)))
    return {
        "found": found,
        "tries": sizes,
        "failed": log.failed,
        "thrown": thrown,
        "seconds": seconds,
    }


def estimated(job: Job, usable: int, *, tight: bool) -> dict[str, Any]:
    """Let an estimate say the size, with no step."""
    started = time.process_time()
    told = max_batch_size(
        job.make, job.spec(), step=loss_of, device="mps", budget=usable, tight=tight
    )
    seconds = time.process_time() - started
    return {"found": told.batch_size, "tries": 0, "failed": 0, "thrown": 0, "seconds": seconds}


def rows_of(job: Job, name: str, limit: float | None) -> Iterator[Row]:
    """Yield a row for each way, with the size found as a share of the largest that fits."""
    with mac(limit):
        usable = int(torch.mps.recommended_max_memory() * (limit or DEFAULT_RATIO))
        most = largest(job)
    figures = {way: searched(job, limit, way, most) for way in WAYS}
    for way, tight in ESTIMATES.items():
        figures[way] = estimated(job, usable, tight=tight)
    for way, its in figures.items():
        share = its["found"] / most if its["found"] else None
        if share and share > 1:
            with mac(limit):
                share = share if fits(job, its["found"]) else None
        case = f"{job.name}, {name}: {most} rows"
        values = {"case": case, "who": way, "share": share, **its}
        yield Row(values=values, side="ours" if way.startswith("mpskit") else "peer")


def section(size: Size) -> Section:
    """Measure and return the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    jobs = size.of(JOBS[:1], JOBS, JOBS)
    limits = dict(list(LIMITS.items())[: size.of(1, 2, 3)])
    rows = [
        row for job in jobs for name, limit in limits.items() for row in rows_of(job, name, limit)
    ]
    table = Table(
        columns=(
            Column(key="case", heading="job, limit: largest that fits"),
            Column(key="who", heading="way"),
            Column(key="found", heading="found", unit="count"),
            Column(
                key="share", heading="of the largest", unit="percent", better="high", margin=0.01
            ),
            Column(key="tries", heading="sizes tried", unit="count"),
            Column(key="failed", heading="steps that raised", unit="count", better="low"),
            Column(key="thrown", heading="steps thrown away", unit="count", better="low"),
            Column(key="seconds", heading="CPU time here", unit="seconds"),
        ),
        rows=tuple(rows),
        case="case",
        plot=Plot(column="thrown", title="Training steps thrown away to find a batch size"),
    )
    return Section(
        name="batch",
        title="Finding a batch size",
        question=(
            "How near does each library's search come to the largest batch that fits, and how many "
            "steps does it run for nothing?"
        ),
        command="python benchmarks/bench_batch.py",
        full="python benchmarks/bench_batch.py --size full",
        tables=(table,),
        notes=NOTES,
    )


if __name__ == "__main__":
    script(section)
