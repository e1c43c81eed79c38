"""Three or five traced layers, repeated, against a trace of every layer: event for event."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpskit._base.data import read_toml
from mpskit.errors import EstimateError
from mpskit.estimate.from_config import Stepped, trace_subject
from mpskit.estimate.reference.config import Lora, read_shape
from mpskit.estimate.reference.modules import build_reference
from mpskit.estimate.reference.repeat_layers import Subject
from mpskit.estimate.targets import target_for

FAMILIES = [name for name in read_toml("model_families.toml") if name not in {"keys", "default"}]
# Hundreds of traces: CUDA, whose kernels the same rules repeat, has its own in the full run.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.full)]
STEPS = {
    "adamw": Stepped(),
    "sgd": Stepped(optimizer=torch.optim.SGD),
    "adagrad": Stepped(optimizer=torch.optim.Adagrad),
    "no optimizer": Stepped(optimizer=None),
    "two batches": Stepped(accumulate=2),
    "half": Stepped(precision="bf16"),
    "inference": Stepped(training=False),
}


def events(config: dict[str, Any], how: Stepped, device: str, **options: Any) -> list[Any]:
    """Return the events with storages numbered in their order of allocation."""
    shape = read_shape(config, tokens=32)
    subject = build_reference(shape, **options)
    log = trace_subject(subject, how, target_for(device), (2, 32)).log
    numbers: dict[int, int] = {}
    result: list[Any] = []
    for event in log.events:
        if event >= 0:
            numbers[event] = len(numbers)
            record = log.records[event]
            result.append((record.size, record.op, record.phase, record.kind))
        else:
            result.append(~numbers.pop(~event))  # no storage goes twice
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, device: str, config_of: Any) -> None:
    how = STEPS["half"] if family == "mixtral" else STEPS["adamw"]
    config = config_of(family)
    assert events(config, how, device) == events(config, how, device, depth=7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", list(STEPS))
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_every_step(family: str, step: str, device: str, config_of: Any) -> None:
    config = config_of(family)
    assert events(config, STEPS[step], device) == events(config, STEPS[step], device, depth=7)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, Lora(4, frozenset({"query", "value"}))])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_adapters_and_checkpointing(
    family: str, lora: Lora | None, checkpointing: bool, config_of: Any
) -> None:
    options: dict[str, Any] = {"lora": lora, "checkpointing": checkpointing}
    config = config_of(family)
    deep = events(config, Stepped(), "cpu", depth=7, **options)
    assert events(config, Stepped(), "cpu", **options) == deep


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 6])
def test_every_depth(layers: int, config_of: Any) -> None:
    config = config_of("llama", num_hidden_layers=layers)
    assert events(config, Stepped(), "cpu") == events(config, Stepped(), "cpu", depth=layers)


class _Uneven(torch.nn.Module):
    """Layers of which the last is wider than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 8, device="meta")
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(8, wide, device="meta"), torch.nn.Linear(wide, 8, device="meta")
            )
            for wide in (16, 16, 32)
        )

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> torch.Tensor:
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x.mean()


def test_layers_that_differ_are_refused() -> None:
    model = _Uneven()
    subject = Subject(model, [model.layers], (9,), "tokens")
    with pytest.raises(EstimateError, match="do not allocate alike"):
        trace_subject(subject, Stepped(), target_for("cpu"), (2, 8))


def test_nothing_stays_on_the_model(config_of: Any) -> None:
    subject = build_reference(read_shape(config_of("llama"), tokens=8))
    before = [(name, len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in
              subject.model.named_modules()]  # fmt: skip
    trace_subject(subject, Stepped(), target_for("cpu"), (1, 8))
    assert before == [(name, len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in
                      subject.model.named_modules()]  # fmt: skip
