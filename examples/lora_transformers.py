"""LoRA with transformers and peft: planned, capped, watched, resumable, on a small Qwen2.

    python examples/lora_transformers.py [--out out/lora] [--resume]
    mpskit simulate m1-8gb -- examples/lora_transformers.py
    mpskit rehearse m1-8gb m3-max-64gb -- examples/lora_transformers.py
    torchrun --nproc-per-node 2 examples/lora_transformers.py
    accelerate launch --multi_gpu --num_processes 2 examples/lora_transformers.py  # or two CPUs

The model is made from CONFIG with random weights, the rows count digits in steps; nothing is
downloaded. For a model of your own, name it (``Qwen/Qwen2.5-0.5B``) where CONFIG stands and use
``AutoModelForCausalLM.from_pretrained(name, **plan.to_model_kwargs())``. Writes checkpoints, the
adapters and, with matplotlib, memory.png into OUT.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

import mpskit
from mpskit import TrainingPlan, plan_training

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
FIRST = os.environ.get("RANK", "0") == "0"


def rows(count: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Return rows of digits that count up from anywhere, in steps of one to nine."""
    found = []
    for index in range(count):
        start, step = index % 10, index // 10 % 9 + 1
        tokens = torch.tensor([(start + step * place) % 10 for place in range(length)])
        found.append({"input_ids": tokens, "labels": tokens})
    return found


def make_model(plan: TrainingPlan) -> Any:
    """Return the model with the plan's adapters, the same in every process."""
    torch.manual_seed(0)
    settings = dict(CONFIG)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, **plan.to_model_kwargs())
    model.config.use_cache = False
    return get_peft_model(model, plan.to_peft())


def train(plan: TrainingPlan, arguments: argparse.Namespace, *, resume: bool) -> list[float]:
    """Train as planned and return the losses; OutOfMemory carries the next plan."""
    settings = plan.to_training_arguments(
        output_dir=str(arguments.out),
        max_steps=arguments.steps,
        learning_rate=2e-2,  # the weights are random: there is more to learn than in fine-tuning
        logging_steps=1,
        save_steps=max(arguments.steps // 2, 1),
        report_to=[],
    )
    capped = plan.device != "cpu"
    cap = arguments.limit or plan.cap_bytes
    with contextlib.ExitStack() as around:
        if capped:
            print(around.enter_context(mpskit.limit_memory(cap, plan.device)))
        callback = around.enter_context(plan.to_trainer_callback(interval=0.05))
        model = make_model(plan)
        data = rows(arguments.rows, plan.seq_len or 32)
        trainer = Trainer(model, settings, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        if trainer.is_world_process_zero():
            model.save_pretrained(arguments.out / "adapters")
    if FIRST:
        report(callback, arguments.out)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def report(callback: Any, out: Path) -> None:
    """Say what the monitor saw, and draw it if matplotlib is installed."""
    print(callback.monitor)
    with contextlib.suppress(mpskit.MissingExtraError):
        print(f"memory: {callback.plot(out / 'memory.png')}")


def run(plan: TrainingPlan, arguments: argparse.Namespace) -> list[float]:
    """Train with the plan, or with the next one after running out of memory."""
    while True:
        try:
            return train(plan, arguments, resume=arguments.resume)
        except mpskit.OutOfMemory as error:
            if error.next_plan is None:
                raise
            print(error)
            plan = error.next_plan


def main() -> int:
    """Plan for this machine and train; 1 if nothing was learnt from the start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/lora"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=32)
    parser.add_argument("--effective-batch", type=int, default=8)
    parser.add_argument("--limit", help="cap on memory instead of the plan's, such as 64MiB")
    parser.add_argument("--resume", action="store_true", help="go on from OUT's last checkpoint")
    arguments = parser.parse_args()
    plan = plan_training(
        CONFIG,
        method="lora",
        seq_len=arguments.seq_len,
        effective_batch=arguments.effective_batch,
        world_size=PROCESSES,
        samples=arguments.rows,
    )
    if FIRST:
        print(plan)
    if not plan:
        return 1
    losses = run(plan, arguments)
    if FIRST:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {arguments.steps} steps")
    return int(not arguments.resume and losses[-1] >= losses[0])


if __name__ == "__main__":
    sys.exit(main())
