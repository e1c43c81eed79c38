"""Loading an epoch: torch's defaults, mpskit's, mpskit's tuned, and the best of a full grid.

    python benchmarks/bench_dataloader.py [--repeats 5] [--json]

Four data sets: tiny tensors (handing over costs more than making), a decode that keeps a processor
busy for some milliseconds (as JPEG does), large samples (600 KB copied for each), and slow I/O
(waits without using a processor). The grid is every number of workers from 0 to four times the
CPUs. A time is that of one epoch with the start and the end of its workers, the shortest of the
repeats: other work on the machine only makes one longer. Every number of workers is measured in
turn within a repeat; settings with the same number are the same measurement.

To reach: tuned within 10% of the grid's best, untuned never over 5% slower than torch's default.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
import zlib
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mpskit import dataloader_kwargs, tune_dataloader
from mpskit.training.dataset_facts import torch_cpu_count


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


def measure(name: str, repeats: int, seconds: float) -> dict[str, Any]:
    dataset: Any = DATASETS[name]()
    size = dataset.batch_size
    tuned = tune_dataloader(dataset, "cpu", batch_size=size, seconds=seconds).kwargs["num_workers"]
    ruled = dataloader_kwargs("cpu", batch_size=size, dataset=dataset)["num_workers"]
    grid = range(4 * torch_cpu_count() + 1)
    times: dict[int, list[float]] = {workers: [] for workers in {*grid, tuned, ruled}}
    for _ in range(repeats):
        for workers, values in times.items():
            kwargs = {"batch_size": size, "num_workers": workers}
            values.append(epoch_seconds(dataset, kwargs))
    shortest = {workers: min(values) for workers, values in times.items()}
    best = min(grid, key=shortest.__getitem__)
    return {
        "dataset": name,
        "torch_s": shortest[0],
        "mpskit_s": shortest[ruled],
        "mpskit_workers": ruled,
        "tuned_s": shortest[tuned],
        "tuned_workers": tuned,
        "best_s": shortest[best],
        "best_workers": best,
        "mpskit_over_torch": shortest[ruled] / shortest[0],
        "tuned_over_best": shortest[tuned] / shortest[best],
        "all_s": shortest,
    }


def table(rows: list[dict[str, Any]]) -> str:
    columns = ["data set", "torch default", "mpskit (workers)", "tuned (workers)"]
    columns += ["best of grid (workers)", "mpskit / torch", "tuned / best"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(
            f"| {row['dataset']} | {row['torch_s']:.2f} s "
            f"| {row['mpskit_s']:.2f} s ({row['mpskit_workers']}) "
            f"| {row['tuned_s']:.2f} s ({row['tuned_workers']}) "
            f"| {row['best_s']:.2f} s ({row['best_workers']}) "
            f"| {row['mpskit_over_torch']:.2f} | {row['tuned_over_best']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="for tune_dataloader, each")
    parser.add_argument("--dataset", choices=DATASETS, action="append")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    # The grid and the tuned setting may have more workers than CPUs: that is what is measured.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    names = arguments.dataset or list(DATASETS)
    rows = [measure(name, arguments.repeats, arguments.seconds) for name in names]
    print(json.dumps({"schema": 1, "rows": rows}, indent=2) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
