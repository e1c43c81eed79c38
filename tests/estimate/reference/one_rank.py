"""One of several real processes: ``one_rank.py RANK WORLD STORE CASES`` prints measured peaks.

A peak is the most bytes that torch's CPU allocator held during two steps, by the profiler's
events. What gloo stages for a collective, in the call or on a thread of its own, is freed on that
thread, where the profiler may not see it: it counts when it is allocated, and not afterwards.
"""

from __future__ import annotations

import gc
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "the measured steps"
KEEPING = {"acc_events": True} if "acc_events" in inspect.signature(profile).parameters else {}


def allocations(
    nodes: list[Any], thread: int, staging: bool = False
) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (time, address, bytes, whether it is staging) of every event below."""
    for node in nodes:
        fields = node.extra_fields
        if node.tag.name == "Allocation":
            elsewhere = node.start_tid != thread
            yield node.start_time_ns, fields.ptr, fields.alloc_size, staging or elsewhere
        within = staging or node.name.startswith("c10d::")
        yield from allocations(node.children, thread, within)


def measured(run: Callable[[], Callable[[], None]]) -> int:
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, **KEEPING) as prof:
        steps = run()
        gc.collect()
        gc.disable()
        with record_function(MARK):
            steps()
        gc.enable()
    results = prof.profiler.kineto_results
    mark = next(event for event in results.events() if event.name() == MARK)
    start, thread = mark.start_ns(), mark.start_thread_id()
    tree = results.experimental_event_tree()
    staged: set[int] = set()
    total = most = 0
    for moment, address, size, staging in sorted(allocations(tree, thread)):
        if size > 0 and staging:
            staged.add(address)
            most = max(most, total + size) if moment > start else most
        elif size < 0 and address in staged:
            staged.discard(address)
        else:
            staged.discard(address)
            total += size
            most = max(most, total) if moment > start else total
    return most


def transformers_model(case: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**case["config"])).train()
    if case.get("lora"):
        from peft import LoraConfig, get_peft_model

        targets = ["q_proj", "v_proj"]
        model = get_peft_model(model, LoraConfig(r=case["lora"], target_modules=targets))
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inner = model.get_base_model() if case.get("lora") else model
    return model, inner.model.layers


def reference_model(case: dict[str, Any]) -> Any:
    """Return the module that is traced, with memory and all of its layers."""
    from mpskit.estimate.reference.config import read_lora, read_shape
    from mpskit.estimate.reference.modules import build_reference

    shape = read_shape(case["config"], tokens=case["seq_len"])
    subject = build_reference(
        shape,
        lora=read_lora(shape, case.get("lora")),
        checkpointing=case.get("checkpointing", False),
        depth=max(shape.layers),
    )
    model = subject.model.to_empty(device="cpu").train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model, subject.stacks[0]


def sharded(model: Any, layers: Any, case: dict[str, Any]) -> Any:
    if case["sharding"] == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options = {}
    if case.get("precision") == "bf16-mixed":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def steps_of(case: dict[str, Any]) -> Callable[[], None]:
    torch.manual_seed(0)
    make = transformers_model if case["model"] == "transformers" else reference_model
    model = sharded(*make(case), case)
    gc.collect()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(0, 100, (case["batch_size"], case["seq_len"]))
    mixed = case.get("precision") == "bf16-mixed"

    def steps() -> None:
        for _ in range(2):
            for _ in range(case.get("accumulate", 1)):
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    result = model(input_ids=ids, labels=ids)
                loss = result["loss"]
                del result
                loss.backward()
                del loss
            optimizer.step()
            optimizer.zero_grad()

    return steps


def main(rank: int, world: int, store: str, cases: str) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}")
    peaks = []
    for case in json.loads(cases):
        peaks.append(measured(lambda case=case: steps_of(case)))
        dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        print("peaks", json.dumps(peaks), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
