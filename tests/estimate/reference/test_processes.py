"""One process of several, beside real ones: gloo on the CPU, the peak of two steps of the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.api import estimate_training_memory
from mpskit.estimate.from_config import Stepped, estimate_from_config, trace_subject
from mpskit.estimate.reference.config import read_lora, read_shape
from mpskit.estimate.reference.modules import build_reference
from mpskit.estimate.reference.processes import Processes
from mpskit.estimate.result import KINDS
from mpskit.estimate.specs import TensorSpec
from mpskit.estimate.targets import target_for

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CASE: dict[str, Any] = {"config": LLAMA, "batch_size": 1, "seq_len": 64}
TIED = LLAMA | {"vocab_size": 1999, "tie_word_embeddings": True}
FSDP, DDP = CASE | {"sharding": "fsdp"}, CASE | {"sharding": "ddp"}
SEVERAL = {
    "fsdp": FSDP,
    "fsdp, two batches": FSDP | {"accumulate": 2},
    "fsdp, checkpointing": FSDP | {"checkpointing": True, "batch_size": 4},
    "fsdp, adapters": FSDP | {"lora": 8, "batch_size": 2},
    "fsdp, an odd vocabulary, tied": FSDP | {"config": TIED, "batch_size": 2},
    "fsdp, mixed": FSDP | {"precision": "bf16-mixed"},
    "ddp, two batches": DDP | {"accumulate": 2, "batch_size": 2},
    "ddp, adapters": DDP | {"lora": 8},
}
WITHIN = {"ddp": 0.005, "fsdp": 0.01}


@pytest.fixture
def real_peaks(tmp_path: Path) -> Any:
    """``real_peaks(cases, world)``: what the first of so many processes took in each case."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    pytest.importorskip("torch.distributed.fsdp", reason="no FSDP in this torch")
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("no fully_shard in this torch")

    def run(cases: list[dict[str, Any]], world: int = 2) -> list[int]:
        script = str(Path(__file__).with_name("one_rank.py"))
        store = tempfile.mkdtemp(dir=tmp_path)  # one that an earlier run used names its ports
        told = [str(world), str(Path(store) / "store"), json.dumps(cases)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        running = [
            subprocess.Popen(
                [sys.executable, script, str(rank), *told],
                env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(world)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=1200) for process in running]
        finally:
            for process in running:
                process.kill()
        assert not any(process.returncode for process in running), said
        line = next(line for line in said[0][0].splitlines() if line.startswith("peaks "))
        found: list[int] = json.loads(line.removeprefix("peaks "))
        return found

    return run


def estimated(case: dict[str, Any], world: int = 2, device: str = "cpu") -> Any:
    asked = {key: value for key, value in case.items() if key not in ("config", "model")}
    if asked.get("lora"):
        asked["lora"] = {"rank": asked["lora"], "targets": ["q_proj", "v_proj"]}
    config = {"tie_word_embeddings": False} | case["config"]
    return estimate_from_config(config, device=device, world_size=world, **asked)


@pytest.mark.full  # twelve processes that train with gloo
def test_two_real_processes(real_peaks: Any) -> None:
    """The module that is traced, with memory.

    What gloo's own threads free the profiler does not always see, so that a measured peak can be
    too high and never too low: the least of three counts.
    """
    small = LLAMA | {"num_hidden_layers": 5, "hidden_size": 128, "tie_word_embeddings": False}
    cases = [case | {"model": "reference", "config": small} for case in (FSDP, DDP)]
    measured = [real_peaks(cases) for _ in range(3)]
    for case, *peaks in zip(cases, *measured, strict=True):
        assert estimated(case).peak_bytes == pytest.approx(min(peaks), rel=WITHIN[case["sharding"]])


@pytest.mark.full  # minutes: processes that train with transformers, peft and gloo
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", [2, 3])
def test_real_processes_of_transformers(world: int, real_peaks: Any) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("peft")
    cases = [case | {"model": "transformers"} for case in SEVERAL.values()]
    for name, case, peak in zip(SEVERAL, cases, real_peaks(cases, world), strict=True):
        told = estimated(case, world).peak_bytes
        assert told == pytest.approx(peak, rel=WITHIN[case["sharding"]]), name


# CUDA, whose kernels the same rules repeat, has its traces in the full run.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.full)])
@pytest.mark.parametrize("family", ["qwen2", "t5"])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["plain", "two batches", "adapters"])
def test_the_middle_layer_stands_for_all(
    kind: str, sharding: Any, family: str, device: str, config_of: Any
) -> None:
    """Event for event, as without processes."""
    target = {"qwen2": "q_proj", "t5": "q"}[family]
    processes = Processes(4, sharding)
    how = Stepped(accumulate=2 if kind == "two batches" else 1, processes=processes)

    def events(depth: int | None) -> list[Any]:
        shape = read_shape(config_of(family), tokens=32)
        lora = read_lora(shape, {"rank": 4, "targets": [target]} if kind == "adapters" else None)
        traced = depth or processes.depth(shape.layers)
        subject = build_reference(shape, lora=lora, depth=traced)
        log = trace_subject(subject, how, target_for(device), (2, 32)).log
        return [
            log.records[event].size if event >= 0 else -log.records[~event].size
            for event in log.events
        ]

    assert events(None) == events(7)


def test_shares() -> None:
    alone = estimated(CASE, 1, "cuda")
    for world in (2, 4, 8):
        need = estimated(FSDP, world, "cuda")
        assert need.parameters_bytes * world == pytest.approx(alone.parameters_bytes, rel=0.01)
        assert need.optimizer_bytes * world == pytest.approx(alone.optimizer_bytes, rel=0.01)
        assert sum(getattr(need, f"{kind}_bytes") for kind in KINDS) == need.peak_bytes
        assert f"one process of {world} with fully_shard" in need.notes[-1]


def test_buckets_are_a_second_copy_of_the_gradients() -> None:
    alone, many = estimated(CASE, 1), estimated(DDP, 8)
    assert many.peak_bytes == alone.peak_bytes + alone.parameters_bytes
    assert many == estimated(CASE, 8)  # what several processes use by default
    adapted = estimated(CASE | {"lora": 8}, 1)
    trained = 7 * 2 * 8 * 256 * 4 + 7 * 8 * (256 + 128) * 4
    assert estimated(DDP | {"lora": 8}).peak_bytes == adapted.peak_bytes + trained


def test_more_processes_take_less_each() -> None:
    needs = [estimated(FSDP, world, "cuda").peak_bytes for world in (2, 4, 16, 64)]
    assert needs == sorted(needs, reverse=True)


def test_mixed_precision_gathers_half() -> None:
    """The shares stay float32, and what is gathered is bfloat16."""
    large = FSDP | {"config": LLAMA | {"hidden_size": 512, "intermediate_size": 2048}}
    full, mixed = (
        estimated(large, 8, "cuda"),
        estimated(large | {"precision": "bf16-mixed"}, 8, "cuda"),
    )
    assert mixed.parameters_bytes == full.parameters_bytes
    assert mixed.optimizer_bytes == full.optimizer_bytes
    assert mixed.temporaries_bytes < 0.7 * full.temporaries_bytes


def test_a_module_has_buckets_without_a_process_group() -> None:
    def needed(world: int) -> int:
        batch = TensorSpec((32, 256))
        return estimate_training_memory(make, batch, device="cpu", world_size=world).peak_bytes

    def make() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.Linear(1024, 256))

    weights = sum(parameter.numel() * 4 for parameter in make().parameters())
    assert needed(2) == needed(1) + weights


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"world_size": 0}, ArgumentError, "world_size"),
        ({"world_size": 2.0}, ArgumentTypeError, "world_size"),
        ({"world_size": 2, "sharding": "zero3"}, ArgumentError, "zero3"),
        ({"sharding": "ddp"}, ArgumentError, "give world_size="),
        ({"world_size": 2, "device": "mps"}, ArgumentError, "no collective operations for MPS"),
        ({"world_size": 2, "training": False}, ArgumentError, "for training"),
        ({"world_size": 2, "implementation": "transformers"}, ArgumentError, "world_size="),
        (
            {"world_size": 2, "sharding": "fsdp", "lora": 8, "base": "nf4", "device": "cuda"},
            ArgumentError,
            "nf4",
        ),
    ],
)
def test_bad_input(asked: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        estimate_from_config(LLAMA, **{"batch_size": 1, "seq_len": 8, "device": "cpu"} | asked)
