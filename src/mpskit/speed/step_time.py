"""How long a step takes on a Mac or a CUDA card: a range of seconds from its counts.

The work of a step is its arithmetic at the rate that torch reaches, and its bytes at the bandwidth
that it reaches. Kernels are enqueued meanwhile, so that the longer of the two counts:

    step = wait + max(launches x launch cost, flops / rate + bytes / bandwidth)

The shares of the chip's figures that torch reaches, and how far published times lie from this, are
in ``data/step_time.toml``, fitted by ``benchmarks/fit_time.py``. A step that swaps takes longer:
whether it fits is asked elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from mpskit._base.arguments import shown, wrong_type
from mpskit._base.data import read_toml
from mpskit._base.values import Value
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.host.chips import Chip, chip_rows, parse_chip
from mpskit.host.cuda_cards import CudaCard, cuda_card, cuda_cards
from mpskit.host.host import detect_host
from mpskit.host.named import MachineLike, as_host
from mpskit.speed.chip_rates import chip_speed
from mpskit.speed.predict import HALF_DTYPES, half_gains, launch_seconds, wait_seconds
from mpskit.speed.workload import Workload

__all__ = ["GUIDE_CARDS", "StepTime", "TimeRange", "cloud_times", "estimate_time", "why_no_time"]

Bound: TypeAlias = Literal["arithmetic", "bandwidth", "launches", "waiting"]

GUIDE_CARDS = ("T4", "P100", "RTX 3060", "RTX 3090", "A100")
"""The cards that people rent or own where a Mac is too slow."""


class TimeRange(Value):
    """Seconds between which a time is expected.

    Attributes:
        low: a time that few fall below.
        middle: as many are above as below.
        high: a time that few exceed.
    """

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> TimeRange:
        """Return the range of so many of these in turn."""
        return TimeRange(
            low=self.low * factor, middle=self.middle * factor, high=self.high * factor
        )

    def __str__(self) -> str:
        size, unit = next((s, u) for s, u in _UNITS if self.middle >= s or s == _UNITS[-1][0])
        return f"{_short(self.low / size)} to {_short(self.high / size)} {unit}"


_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


class StepTime(Value):
    """How long one step takes, and what that rests on.

    Attributes:
        device: ``mps``, ``cpu`` or ``cuda``.
        chip: of the Mac, ``M3 Max``, or the card, ``RTX 3090``.
        step: seconds of one step.
        bound: what takes the most of the middle.
        coverage: the share of the published times of this kind that such a range held, when the
            constants had not seen their source.
        factor: the median factor between such a middle and the published time.
        rows: how many times of this kind were published with counts.
        sources: where the chip's figures and the published times stand.
    """

    device: str
    chip: str
    step: TimeRange
    bound: Bound
    coverage: float
    factor: float
    rows: int
    sources: tuple[str, ...]

    def steps(self, count: float) -> TimeRange:
        """Return the seconds of so many steps."""
        return self.step.times(count)

    def epoch_seconds(self, samples: int, batch: int) -> TimeRange:
        """Return the seconds of an epoch: of as many steps as ``samples`` rows make.

        Args:
            samples: rows of the data set.
            batch: rows of the counted step, with all that it accumulates.

        Raises:
            ArgumentError: one of them is not above 0.
            ArgumentTypeError: one of them is no int.
        """
        for name, value in (("samples", samples), ("batch", batch)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentTypeError(f"{name} must be an int, got {shown(value)}", given=value)
            if value < 1:
                raise ArgumentError(f"{name} must be at least 1, got {value}", given=value)
        return self.steps(-(-samples // batch))

    def per_second(self, amount: float) -> tuple[float, float, float]:
        """Return how much of what a step has ``amount`` of (tokens, images) goes by in a second.

        Returns:
            The least, the middle and the most.
        """
        step = self.step
        return amount / step.high, amount / step.middle, amount / step.low

    def __str__(self) -> str:
        return (
            f"{self.step} a step on {self.chip} ({self.device}; most of it {self.bound}); such "
            f"ranges held {self.coverage:.0%} of {self.rows} published times"
        )


class Shares(NamedTuple):
    """What a step reaches of a device's figures: of the peak rate, and of the bandwidth."""

    flops: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device could reach by its maker's figures.

    Attributes:
        device: its type.
        name: of the chip or the card.
        flops: peak operations a second by dtype, and ``tf32`` where there is one.
        bandwidth: bytes a second.
        sources: of the figures.
    """

    device: str
    name: str
    flops: Mapping[str, float]
    bandwidth: float
    sources: tuple[str, ...]


def estimate_time(
    workload: Workload,
    machine: MachineLike | Chip | None = None,
    *,
    device: str | None = None,
) -> StepTime | None:
    """Return how long a step takes, as a range; None where no published figure supports one.

    Args:
        workload: the counts of a step: :meth:`mpskit.Workload.of`, or
            :func:`mpskit.workload_from_config` for a transformer by its config.
        machine: a Mac (``m1-16gb``, ``M3 Max``), a CUDA card (``T4``, ``RTX 3090``), a
            :class:`mpskit.Machine` or :class:`mpskit.Host`; None is this machine.
        device: ``mps`` or ``cpu`` of a Mac, ``cuda`` of a card; None is the faster kind: the GPU.

    Returns:
        The range, or None. :func:`why_no_time` says what is missing.

    Raises:
        ArgumentError: there is no device of that name.
        ArgumentTypeError: an argument of the wrong type.
        UnknownMachineError: no machine, chip or card has that name.
    """
    found = _answer(workload, machine, device)
    return found if isinstance(found, StepTime) else None


def why_no_time(
    workload: Workload,
    machine: MachineLike | Chip | None = None,
    *,
    device: str | None = None,
) -> str | None:
    """Return why :func:`estimate_time` returns None for the same arguments; None if it does not."""
    found = _answer(workload, machine, device)
    return found if isinstance(found, str) else None


def cloud_times(workload: Workload) -> tuple[StepTime, ...]:
    """Return the times on the cards that one would rent instead, fastest first."""
    found = (estimate_time(workload, card) for card in GUIDE_CARDS)
    return tuple(sorted((t for t in found if t is not None), key=lambda t: t.step.middle))


def _answer(workload: Workload, machine: Any, device: str | None) -> StepTime | str:
    """Return the time, or why there is none."""
    if not isinstance(workload, Workload):
        raise ArgumentTypeError(
            f"a workload is a mpskit.Workload, not {shown(workload)}", given=workload
        )
    rates = rates_of(machine, device)
    if isinstance(rates, str):
        return rates
    if not workload.flops or not workload.bytes_moved:
        return "the workload has no counts: Workload.of(model, batch) makes them"
    return _timed(workload, rates)


def _timed(workload: Workload, rates: Rates) -> StepTime | str:
    table = read_toml("step_time.toml")
    row = table["device"][rates.device].get(table["kinds"].get(workload.op_class or ""))
    if row is None:
        kind = workload.op_class or "a step of no known class"
        return f"published times do not support a range for {kind} on {rates.device}"
    if workload.dtype in HALF_DTYPES and workload.dtype not in rates.flops:
        return f"{rates.name} has no {workload.dtype} arithmetic, or its rate is not known"
    shares = Shares(row["flops_share"], row["bandwidth_share"])
    middle, bound = seconds_with(shares, workload, rates)
    spread = row["spread"]
    return StepTime(
        device=rates.device,
        chip=rates.name,
        step=TimeRange(low=middle / spread, middle=middle, high=middle * spread),
        bound=bound,
        coverage=row["coverage"],
        factor=row["factor"],
        rows=row["rows"],
        sources=(*rates.sources, *row["published"]),
    )


def seconds_with(shares: Shares, workload: Workload, rates: Rates) -> tuple[float, Bound]:
    """Return the middle of a step's time and what takes the most of it.

    Args:
        shares: what the step reaches, the bundled ones or others: to compare them.
        workload: with counts.
        rates: of the device.
    """
    launch, wait = _launch_costs(rates.device)
    terms: dict[Bound, float] = {
        "arithmetic": (workload.flops or 0.0) / (_peak(workload, rates) * shares.flops),
        "bandwidth": (workload.bytes_moved or 0.0) / (rates.bandwidth * shares.bandwidth),
        "launches": (workload.launches or 0.0) * launch,
        "waiting": wait,
    }
    work = terms["arithmetic"] + terms["bandwidth"]
    if work < terms["launches"]:
        work = terms["launches"]
    else:
        del terms["launches"]
    return wait + work, max(terms, key=lambda name: terms[name])


def _launch_costs(device: str) -> tuple[float, float]:
    """Return the seconds of a launch and of waiting for the device once."""
    costs = read_toml("step_time.toml")["device"][device]
    if "launch" in costs:
        return costs["launch"], costs["wait"]
    return launch_seconds(1.0, device), wait_seconds() if device == "mps" else 0.0


def _peak(workload: Workload, rates: Rates) -> float:
    """Return the peak rate of the arithmetic that torch uses by default.

    Convolutions in float32 run in TF32 where a card has it, matrix products only when asked to.
    """
    if workload.dtype in HALF_DTYPES:
        return rates.flops[workload.dtype]
    asked = workload.dtype == "tf32" or workload.op_class == "cnn"
    return rates.flops.get("tf32" if asked else "float32", rates.flops["float32"])


def rates_of(machine: Any, device: str | None) -> Rates | str:
    """Return the figures of a machine's device, or why there are none."""
    timed = read_toml("step_time.toml")["device"]
    if device is not None and not isinstance(device, str):
        raise wrong_type("device", "a name such as 'mps'", device)
    if device is not None and device not in timed:
        raise ArgumentError(f"no time for {shown(device)}: one of {', '.join(timed)}", given=device)
    chip = _chip_named(machine)
    if chip is None:
        host = detect_host() if machine is None else as_host(machine)
        if host.cuda_card is not None:
            return _card_rates(cuda_cards()[host.cuda_card.lower()], device)
        chip = None if host.is_vm else host.chip  # a virtual Mac has a share of the chip's figures
    if chip is None:
        return "only Macs with Apple silicon and the cards of data/cuda_cards.csv have figures"
    if device == "cuda":
        return f"{chip.name} has no CUDA device"
    return _chip_rates(chip, device or "mps")


def _chip_named(machine: Any) -> Chip | None:
    """Return the chip that stands for a whole machine: given, or by its name without RAM."""
    if isinstance(machine, Chip):
        return machine
    if not isinstance(machine, str) or cuda_card(machine) is not None:  # A100 is no Apple chip
        return None
    chip, more = parse_chip(machine), re.search(r"(?i)\d\s*-?g|virtual", machine)
    return None if chip is None or chip.generation is None or more else chip


def _chip_rates(chip: Chip, device: str) -> Rates | str:
    speed = chip_speed(chip)
    if not speed.known:
        return f"the figures of {chip.name} are not known"
    half_cpu, half_gpu = half_gains()
    sources = tuple(dict.fromkeys(row.sources for row in chip_rows(chip.name)))
    if device == "cpu":
        rate, gain, bandwidth = speed.cpu_tflops * 1e12, half_cpu, speed.cpu_bandwidth_gbs
    else:
        rate, gain, bandwidth = speed.gpu_tflops * 1e12, half_gpu, speed.gpu_bandwidth_gbs
    # Metal computes bfloat16 in float32 where the GPU has none (M1, M2).
    emulated = device != "cpu" and not chip.bf16_native
    flops = {"float32": rate, "float16": rate * gain, "bfloat16": rate * (1 if emulated else gain)}
    return Rates(device, speed.name, flops, bandwidth * 1e9, sources)


def _card_rates(card: CudaCard, device: str | None) -> Rates | str:
    if device not in (None, "cuda"):
        return f"{card.name} is a CUDA card; it has no {device} figures"
    more = read_toml("step_time.toml")["card"].get(card.name, {})
    rates = {"float32": card.fp32_tflops, "float16": more.get("half"), "tf32": more.get("tf32")}
    if more.get("tf32"):
        rates["bfloat16"] = more["half"]
    flops = {name: rate * 1e12 for name, rate in rates.items() if rate}
    sources = (card.sources, *([more["source"]] if more else []))
    return Rates("cuda", card.name, flops, card.memory_bandwidth_gbs * 1e9, sources)
