"""Counts the models of ``data/step_times.csv``: flops, bytes, launches of the step that was timed.

    python benchmarks/count_times.py

Writes the counts into the file's last columns.
"""

from __future__ import annotations

import csv
from pathlib import Path

from time_models import CONFIGS, VISION

from mpskit import TensorSpec, Workload, workload_from_config

DATA = Path(__file__).parent / "data" / "step_times.csv"
COUNTS = ("flops", "bytes_moved", "launches", "params", "dtype", "op_class")


def counted(row: dict[str, str]) -> Workload:
    """Return the counts of the step that a row's source timed."""
    training = row["training"] == "yes"
    precision = "fp32" if row["precision"] == "tf32" else row["precision"]
    if row["model"] in CONFIGS:
        return workload_from_config(
            CONFIGS[row["model"]],
            batch_size=int(row["batch"]),
            seq_len=int(row["size"]),
            training=training,
            precision=precision,
            device=row["device"],
        )
    height, _, width = row["size"].partition("x")
    images = TensorSpec((int(row["batch"]), 3, int(height), int(width or height)), "float32")
    model = VISION[row["model"]]()
    if not training:
        half = precision == "fp16"
        model = model.half() if half else model
        images = TensorSpec(images.shape, "float16") if half else images
        return Workload.of(model, images, training=False)
    optimizer = "Adam" if row["model"] == "vgg16_bn" else "SGD"
    return Workload.of(
        model,
        images,
        step=lambda model, images: model(images).square().mean(),
        optimizer=optimizer,
        precision=precision,
    )


def main() -> None:
    """Count every row anew."""
    with DATA.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        workload = counted(row)
        row |= {name: str(getattr(workload, name)) for name in COUNTS}
        print(row["chip"], row["model"], row["seconds"], workload)
    with DATA.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
