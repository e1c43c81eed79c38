"""Calls mpskit's functions with arguments that nobody should give, and counts what comes back.

    python benchmarks/fuzz.py [--inputs 120000] [--seed 7] [--only NAME ...] [--json]

Each argument is drawn from values that are meant for it or from hostile ones: absurd numbers,
unpaired surrogates, megabytes of text, objects whose ``__repr__`` raises. A call holds if it
returns within some seconds or raises an :class:`mpskit.MpskitError`, and if a result that is a
pydantic model can be written as JSON. The exit code is 1 if a call did not hold. What only reads,
or computes without running a model, is called; nothing of the machine is changed.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import math
import os
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import torch

import mpskit
from mpskit import MpskitError
from mpskit._base.sizes import check_size
from mpskit.host import Host, Readings, find_machine
from mpskit.memory.oom import parse_oom
from mpskit.plan.settings import batch_sizes
from mpskit.settings import read_settings
from mpskit.system.gpu import gpu_percent_in
from mpskit.system.privacy import scrub

SLOW_SECONDS = 8.0  # of processor time


class Raising:
    """An object that answers nothing."""

    def __repr__(self) -> str:
        raise ZeroDivisionError("no words")

    __str__ = __repr__


HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63), 10**400, 10**5000, 0.0, -0.0, 0.5,
    1e308, 1e-320, math.nan, math.inf, -math.inf, 1j, "", " ", "\0", "\ud800", "mps\udcff",
    "\uff11\uff16gb", "9" * 400, "9" * 5000, "x" * 1_000_000, "1 " * 50_000, "m1-16gb", "M1",
    "16 GB", "1e9", "-1GiB", "80%", "cuda:01", "mps:1", "meta", "\n\n", "[" * 5000, "{}", b"",
    b"\xff\xfe", [], [None], [[]], {}, {"a": 1}, {None: None}, {"model_type": "llama"}, (), set(),
    frozenset({1}), range(3), Path("/nowhere"), Path(), object(), Raising(), ValueError,
    ValueError("x"), print, lambda: None, torch, torch.float16, torch.device("cpu"),
    torch.nn.Linear, float, type, Ellipsis,
)  # fmt: skip

MACHINES = (
    None,
    "m1-8gb",
    "m1-16gb",
    "m3-max-64gb",
    "intel-mac-32gb",
    "T4",
    "github-macos-14-vm",
    "rosetta-m2-16gb",
)
DEVICES = (None, "cpu", "mps", "cuda", "cuda:0", torch.device("mps"))
SIZES = (1, 2**30, 8 * 2**30, "8GiB", "80%", 0.5, "1.5 GB")
NAMES = ("Qwen/Qwen2.5-0.5B", "gpt2", "meta-llama/Llama-3.2-1B")
COUNTS = (1, 2, 8, 512)
TEXTS = (
    "MPS backend out of memory (MPS allocated: 8.89 GB, max allowed: 9.07 GB). Tried to allocate "  # noqa: ISC004
    "6.25 MB on private pool.",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
    "Killed",
)
CONFIG = {
    "model_type": ("llama", "gpt2", "bert", "t5", "mixtral"),
    "vocab_size": (64,),
    "hidden_size": (16, 64),
    "intermediate_size": (32,),
    "num_hidden_layers": (1, 2),
    "num_attention_heads": (2,),
    "max_position_embeddings": (64,),
}


@dataclass(frozen=True)
class Target:
    """A function, and for each of its arguments the values that are meant for it.

    Attributes:
        weight: how often it is called, against the others.
        call: gets the drawn arguments by name.
        arguments: by name; those that are not drawn are left out.
        whole: the names that are always drawn.
    """

    call: Callable[..., Any]
    arguments: Mapping[str, tuple[Any, ...]]
    whole: tuple[str, ...] = ()
    weight: int = 100


def _config(**drawn: Any) -> Any:
    return mpskit.estimate_from_config(drawn, batch_size=1, seq_len=8, device="mps")


def _oom(text: Any) -> Any:
    error = text if isinstance(text, BaseException) else RuntimeError(text)
    return mpskit.is_oom(error), mpskit.explain_oom(error)


def _searched(start: Any, **options: Any) -> Any:
    def fn(batch_size: int, **_others: Any) -> int:
        if batch_size > 3:
            raise RuntimeError(TEXTS[0])
        return batch_size

    return mpskit.run_with_batch_size(fn, start, **options)


def _settings(**drawn: Any) -> Any:
    return read_settings({name: value for name, value in drawn.items() if isinstance(value, str)})


def _host(**drawn: Any) -> Any:
    texts = {
        name: value for name, value in drawn.items() if value is None or isinstance(value, str)
    }
    return Host.from_readings(Readings(**texts))


@functools.cache
def targets() -> dict[str, Target]:
    """Return what is called, by name."""
    workload = mpskit.workload_from_config(NAMES[0], batch_size=1, seq_len=16, device="mps")
    estimate = mpskit.estimate_from_config(NAMES[0], batch_size=1, seq_len=16, device="mps")

    return {
        "find_machine": Target(lambda name: find_machine(name), {"name": MACHINES[1:]}, ("name",)),
        "Machine": Target(
            mpskit.Machine,
            {
                "chip": ("M1", "M3 Max", "M6"),
                "ram_gib": (8, 16, 64),
                "macos": ("15.6", 26),
                "gpu_cores": (8,),
            },
            ("chip", "ram_gib"),
        ),
        "memory_budget": Target(
            mpskit.memory_budget, {"machine": MACHINES, "device": DEVICES, "reserve": SIZES}
        ),
        "memory_budget_for": Target(
            mpskit.memory_budget_for,
            {
                "ram_bytes": (8 * 2**30,),
                "macos": ("15.6", "26"),
                "chip": ("M1",),
                "vram_bytes": (2**32,),
                "reserve": SIZES,
            },
            ("ram_bytes",),
        ),
        "check_size": Target(lambda size: check_size("size", size), {"size": SIZES}, ("size",)),
        "parse_oom": Target(parse_oom, {"text": TEXTS}, ("text",)),
        "explain_oom": Target(_oom, {"text": TEXTS}, ("text",)),
        "precision_for": Target(
            mpskit.precision_for,
            {"device": DEVICES, "machine": MACHINES, "torch_version": (None, "2.13.0", "2.6")},
        ),
        "known_issues": Target(
            mpskit.known_issues, {"machine": MACHINES, "torch_version": (None, "2.13.0")}
        ),
        "cpu_threads": Target(
            mpskit.cpu_threads, {"device": DEVICES, "machine": MACHINES, "num_workers": COUNTS}
        ),
        "dataloader_kwargs": Target(
            mpskit.dataloader_kwargs,
            {
                "device": DEVICES[1:],
                "machine": MACHINES,
                "batch_size": COUNTS,
                "num_workers": COUNTS,
                "explain": (True, False),
            },
            ("device",),
        ),
        "distributed_backend": Target(
            mpskit.distributed_backend, {"device": DEVICES[1:]}, ("device",)
        ),
        "current_environment": Target(
            mpskit.current_environment, {"environ": ({"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.4"},)}
        ),
        "get_optimal_device": Target(
            mpskit.get_optimal_device,
            {
                "use_gpu": (True, False),
                "force_mps": (False,),
                "policy": (None, "auto", "conservative"),
                "strict": (True, False),
            },
        ),
        "read_settings": Target(
            _settings,
            {
                "MPSKIT_DEVICE": ("cpu", "cuda:0"),
                "MPSKIT_POLICY": ("conservative",),
                "MPSKIT_CACHE_DIR": ("off",),
            },
        ),
        "Host.from_readings": Target(
            _host,
            {
                "system": ("Darwin", "Linux"),
                "machine": ("arm64", "x86_64"),
                "platform_string": ("macOS-15.6-arm64",),
                "mac_ver": ("15.6",),
                "processor": ("arm",),
                "product_version": ("15.6", "26.1"),
            },
        ),
        "gpu_percent_in": Target(
            lambda plist: gpu_percent_in(plist if isinstance(plist, bytes) else b""),
            {"plist": (b"<plist><array/></plist>", b"<array><dict/></array>", b"bplist00")},
            ("plist",),
        ),
        "scrub": Target(
            lambda text: scrub(text if isinstance(text, str) else ""), {"text": TEXTS}, ("text",)
        ),
        "batch_sizes": Target(
            lambda effective: (
                batch_sizes(effective) if type(effective) is int and effective > 0 else None
            ),
            {"effective": COUNTS},
            ("effective",),
        ),
        "run_with_batch_size": Target(
            _searched,
            {
                "start": COUNTS,
                "min": (1,),
                "effective": (None, 32),
                "repeat": (True, False),
                "device": DEVICES[:2],
            },
            ("start",),
            weight=40,
        ),
        "TensorSpec": Target(
            mpskit.TensorSpec,
            {"shape": ((2, 3), (1,)), "dtype": ("float32", torch.int64), "fill": (0, 1)},
            ("shape",),
        ),
        "MemoryEstimate.fits": Target(
            estimate.fits, {"budget": (*MACHINES[1:], *SIZES)}, ("budget",)
        ),
        "estimate_time": Target(
            mpskit.estimate_time,
            {"workload": (workload,), "machine": MACHINES, "device": DEVICES[:4]},
            ("workload",),
        ),
        "predict_speedup": Target(
            mpskit.predict_speedup,
            {"workload": (workload,), "chip": ("M1", None), "machine": MACHINES},
            ("workload",),
        ),
        "estimate_from_config": Target(
            mpskit.estimate_from_config,
            {
                "config": NAMES,
                "batch_size": (1, 2),
                "seq_len": (8, 64),
                "training": (True, False),
                "lora": (None, 8),
                "precision": ("fp32", "bf16-mixed"),
                "optimizer": ("adamw", "sgd"),
                "device": DEVICES[1:4],
            },
            ("config", "batch_size", "seq_len"),
            weight=3,
        ),
        "estimate_from_config(config's own keys)": Target(_config, CONFIG, tuple(CONFIG), weight=5),
        "plan_training": Target(
            mpskit.plan_training,
            {
                "model_or_config": NAMES[:1],
                "machine": MACHINES,
                "seq_len": (64,),
                "effective_batch": (1, 8),
                "lora": (8,),
                "method": ("auto", "lora"),
                "optimizer": ("adamw",),
                "fixed": ({"precision": "fp32"},),
                "samples": (100,),
            },
            ("model_or_config",),
            weight=1,
        ),
    }


@dataclass
class Count:
    """What came back from one function."""

    returned: int = 0
    refused: int = 0
    slow: int = 0
    raised: collections.Counter[str] = field(default_factory=collections.Counter)


def drawn(target: Target, rng: random.Random) -> dict[str, Any]:
    """Draw arguments: about two in five hostile."""
    names = [name for name in target.arguments if name in target.whole or rng.random() < 0.5]
    return {
        name: rng.choice(HOSTILE) if rng.random() < 0.4 else rng.choice(target.arguments[name])
        for name in names
    }


def tried(target: Target, arguments: dict[str, Any], count: Count) -> None:
    """Call once and count."""
    began = time.process_time()
    try:
        result = target.call(**arguments)
        if isinstance(result, pydantic.BaseModel):
            result.model_dump_json()
        count.returned += 1
    except MpskitError:
        count.refused += 1
    except Exception as error:
        own = [one for one in traceback.extract_tb(error.__traceback__) if "mpskit" in one.filename]
        place = own[-1] if own else traceback.extract_tb(error.__traceback__)[-1]
        count.raised[f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"] += 1
        if count.raised.total() <= 3:
            shown = {name: shortened(value) for name, value in arguments.items()}
            print(f"  {type(error).__name__}: {str(error)[:120]} <- {shown}", file=sys.stderr)
    if time.process_time() - began > SLOW_SECONDS:
        count.slow += 1


def shortened(value: Any) -> str:
    try:
        return repr(value)[:60]
    except Exception:  # ours raises on purpose, and so do long integers
        return f"<{type(value).__name__}>"


def fuzzed(chosen: Mapping[str, Target], inputs: int, seed: int) -> dict[str, Count]:
    """Call the functions, as often as their weights say, and count what came back."""
    counts, rng = {name: Count() for name in chosen}, random.Random(seed)
    weights = [target.weight for target in chosen.values()]
    for number, name in enumerate(rng.choices(list(chosen), weights, k=inputs)):
        if number % 1000 == 0 and sys.stderr.isatty():
            print(f"\r{number} of {inputs}", end="", file=sys.stderr)
        tried(chosen[name], drawn(chosen[name], rng), counts[name])
    return counts


def main() -> int:
    """Fuzz, print a table, and return 1 if a call did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=targets(), metavar="NAME")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["MPSKIT_CACHE_DIR"] = "off"
    chosen = {name: targets()[name] for name in options.only or targets()}
    counts = fuzzed(chosen, options.inputs, options.seed)
    report(counts, as_json=options.json)
    return int(any(count.raised or count.slow for count in counts.values()))


def report(counts: Mapping[str, Count], *, as_json: bool) -> None:
    """Print the counts."""
    if as_json:
        print(json.dumps({name: vars(count) for name, count in counts.items()}, indent=1))
        return
    print("| function | returned | refused | another error | over 8 s |\n|---|---|---|---|---|")
    for name, count in counts.items():
        cells = (name, count.returned, count.refused, count.raised.total(), count.slow)
        print("| " + " | ".join(map(str, cells)) + " |")
    for name, count in counts.items():
        for what, times in count.raised.most_common():
            print(f"{name}: {what}, {times} times")


if __name__ == "__main__":
    raise SystemExit(main())
