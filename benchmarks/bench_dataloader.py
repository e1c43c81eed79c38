"""Loading an epoch: the settings of mpskit and of others, and the best of a grid.

    python benchmarks/bench_dataloader.py

Four data sets: tiny tensors (handing over costs more than making), a decode that keeps a processor
busy for some milliseconds (as JPEG does), large samples (600 KB copied for each), and slow I/O
(waits without using a processor). The grid is every number of workers from 0
to twice the CPUs (``--size full``: four times). A time is that of one epoch with the start and the
end of its workers, the shortest of the repeats: other work on the machine only makes one longer.
Every number of workers is measured in turn within a repeat; settings with the same number are the
same measurement.

To reach: tuned within 10% of the grid's best, untuned never over 5% slower than torch's default.
"""

from __future__ import annotations

import os
import time
import warnings
import zlib
from typing import Any

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from results import NOISE, Column, Plot, Row, Section, Size, Table, script
from torch.utils.data import DataLoader, Dataset

from mpskit import dataloader_kwargs, tune_dataloader
from mpskit.training.dataset_facts import torch_cpu_count

BEST = "best of the grid"
NOTES = (
    (
        "One epoch with the start and the end of its workers, the shortest of the repeats, every "
        "number of workers in turn within a repeat; settings with the same number are the same "
        "measurement. The data: 20,000 tiny tensors; 320 samples that take some milliseconds of a "
        "CPU to decode; 2,000 copies of 600 KB; 480 samples that wait 4 ms. *Lightning's advice* "
        "is the number in its warning (`suggested_max_num_workers`), *ultralytics* is `min(CPUs, "
        "8)` of its `build_dataloader`, *fastai* one for each CPU; of each only the number of "
        "workers is taken."
    ),
    (
        "To reach: tuned within 10% of the grid's best, the rule never over 5% slower than torch's "
        "default. Tuning takes some seconds once, which are not in the table."
    ),
)


class Tiny(Dataset[torch.Tensor]):
    """Sixteen numbers, made in no time, by a class that a rule cannot see through."""

    batch_size = 32

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((16,), float(index))


class Decode(Dataset[torch.Tensor]):
    """Inflates 1.5 MB and scales it down: a few milliseconds of processor time, as a JPEG takes."""

    batch_size = 16

    def __init__(self) -> None:
        pixels = torch.randint(0, 8, (3 * 700 * 700,), dtype=torch.uint8)
        self.packed = zlib.compress(pixels.numpy().tobytes(), 1)

    def __len__(self) -> int:
        return 320

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = torch.frombuffer(bytearray(zlib.decompress(self.packed)), dtype=torch.uint8)
        return pixels.view(3, 700, 700)[:, ::4, ::4].float().div(255)


class Large(Dataset[torch.Tensor]):
    """Samples of 600 KB that are there already and only copied."""

    batch_size = 16

    def __init__(self) -> None:
        self.samples = torch.rand(8, 3, 224, 224)

    def __len__(self) -> int:
        return 2_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.samples[index % 8].clone()


class SlowIO(Dataset[torch.Tensor]):
    """Waits four milliseconds for each sample, as for a disk or a network."""

    batch_size = 8

    def __len__(self) -> int:
        return 480

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.004)
        return torch.full((64,), float(index))


DATASETS = {"tiny tensors": Tiny, "decode": Decode, "large samples": Large, "slow I/O": SlowIO}


def epoch_seconds(dataset: Dataset[torch.Tensor], kwargs: dict[str, Any]) -> float:
    start = time.perf_counter()
    loader = DataLoader(dataset, **kwargs)
    for _ in loader:
        pass
    del loader  # persistent workers end here, others at the end of the epoch
    return time.perf_counter() - start


def workers_of(dataset: Any, seconds: float) -> dict[str, int]:
    """Return the number of workers that each way chooses on this machine."""
    size, cpus = dataset.batch_size, torch_cpu_count()
    return {
        "mpskit's rule": dataloader_kwargs("cpu", batch_size=size, dataset=dataset)["num_workers"],
        "mpskit, tuned": tune_dataloader(dataset, "cpu", batch_size=size, seconds=seconds).kwargs[
            "num_workers"
        ],
        # accelerate and transformers' Trainer leave it as it is.
        "torch, accelerate, transformers": 0,
        "Lightning's advice": suggested_max_num_workers(1),
        # build_dataloader: min(os.cpu_count() // max(CUDA cards, 1), workers), workers=8 by default
        "ultralytics": min(os.cpu_count() or 1, 8),
        "fastai": min(16, cpus),
    }


def measure(name: str, repeats: int, seconds: float, most: int) -> list[Row]:
    """Return a row for each way and one for the best of the grid."""
    dataset: Any = DATASETS[name]()
    ways = workers_of(dataset, seconds)
    times: dict[int, list[float]] = {n: [] for n in sorted({*range(most + 1), *ways.values()})}
    for _ in range(repeats):
        for workers, values in times.items():
            kwargs = {"batch_size": dataset.batch_size, "num_workers": workers}
            values.append(epoch_seconds(dataset, kwargs))
    shortest = {workers: min(values) for workers, values in times.items()}
    ways[BEST] = min(shortest, key=shortest.__getitem__)
    rows = []
    for who, workers in ways.items():
        ratio = shortest[workers] / shortest[ways[BEST]]
        values = {
            "case": name, "who": who, "workers": workers, "seconds": shortest[workers],
            "ratio": ratio,
        }  # fmt: skip
        side = None if who == BEST else "ours" if who.startswith("mpskit") else "peer"
        rows.append(Row(values=values, side=side))
    return rows


def section(size: Size) -> Section:
    """Measure and return the table."""
    # The grid and the tuned setting may have more workers than CPUs: that is what is measured.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    names = list(DATASETS)[: size.of(1, 4, 4)]
    most = size.of(1, 2, 4) * torch_cpu_count()
    repeats, seconds = size.of(1, 3, 5), size.of(1.0, 6.0, 10.0)
    rows = [row for name in names for row in measure(name, repeats, seconds, most)]
    table = Table(
        columns=(
            Column(key="case", heading="data set"),
            Column(key="who", heading="settings of"),
            Column(key="workers", heading="workers", unit="count"),
            Column(key="seconds", heading="an epoch", unit="seconds", better="low", margin=NOISE),
            Column(key="ratio", heading="times the best", unit="ratio"),
        ),
        rows=tuple(rows),
        case="case",
        plot=Plot(column="seconds", title="Seconds of an epoch"),
    )
    return Section(
        name="loader",
        title="Loading data",
        question="Whose number of DataLoader workers is quickest, for four kinds of data?",
        command="python benchmarks/bench_dataloader.py",
        full="python benchmarks/bench_dataloader.py --size full",
        page="dataloader",
        tables=(table,),
        notes=NOTES,
    )


if __name__ == "__main__":
    script(section)
