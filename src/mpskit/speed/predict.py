"""Whether MPS is faster than the CPU, and by how much, from counts or from one CPU step.

MPS launches kernels asynchronously, the CPU one after the other:

    MPS = synchronise + max(launches x launch cost, roofline x slowdown of the class)
    CPU = launches x launch cost + roofline x slowdown of the class

A measured CPU step replaces the second line, and corrects the first: where the CPU needs longer
than predicted, the count was too small, and part of that holds on the GPU too. Without counts the
GPU does the CPU's work ``work_speedup`` times faster. The constants are in ``data/speed.toml``,
fitted by ``benchmarks/fit_speed.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mpskit._base.arguments import shown
from mpskit._base.data import read_toml
from mpskit._base.values import Value
from mpskit.backends.versions import older
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.host.chips import Chip
from mpskit.host.named import MachineLike, as_host
from mpskit.speed.chip_rates import ChipSpeed, chip_speed
from mpskit.speed.workload import Workload

__all__ = [
    "HALF_DTYPES",
    "Prediction",
    "half_gains",
    "launch_seconds",
    "predict_speedup",
    "wait_seconds",
]

Basis: TypeAlias = Literal["static", "cpu-step"]
Bound: TypeAlias = Literal["synchronisation", "launches", "work"]

HALF_DTYPES = frozenset({"float16", "bfloat16"})


class Prediction(Value):
    """How MPS compares with the CPU for one step.

    Attributes:
        mps_speedup: CPU time / MPS time; above 1 MPS is faster.
        sure: whether such predictions were right at least 95 times in 100 on sources of
            measurements that the constants had not seen.
        basis: what it rests on.
        cpu_seconds: of one step on the CPU: measured (``cpu-step``) or predicted (``static``).
        mps_seconds: of one step on MPS, predicted.
        launches: kernels a step, as counted or as usual for the class.
        bound: what takes the most of the MPS time.
        op_class: whose constants were used; None for those of no class.
        chip: the figures of the chip.
    """

    mps_speedup: float
    sure: bool
    basis: Basis
    cpu_seconds: float
    mps_seconds: float
    launches: float
    bound: Bound
    op_class: str | None
    chip: ChipSpeed

    def __str__(self) -> str:
        faster, ratio = ("MPS", self.mps_speedup)
        if ratio < 1:
            faster, ratio = ("CPU", 1 / ratio)
        certainty = "" if self.sure else ", not sure"
        return (
            f"{faster} {ratio:.1f} times faster by {self.basis}{certainty} "
            f"(CPU {self.cpu_seconds * 1e3:.3g} ms, MPS {self.mps_seconds * 1e3:.3g} ms, "
            f"most of it {self.bound}; {self.chip.name})"
        )


@dataclass(frozen=True, slots=True)
class OpClass:
    """How a class of operators runs; a row of ``data/speed.toml``.

    Attributes:
        mps_slowdown: time on MPS / the roofline's.
        cpu_slowdown: time on the CPU / the roofline's.
        work_speedup: the CPU's time for the work / the GPU's, launches apart.
        launches: kernels a forward pass, where they were not counted.
        cpu_launch: seconds a kernel takes on the CPU, where nothing else tells.
    """

    mps_slowdown: float
    cpu_slowdown: float
    work_speedup: float
    launches: float
    cpu_launch: float


@dataclass(frozen=True, slots=True)
class Constants:
    """The figures of ``data/speed.toml``; times in seconds.

    Attributes:
        mps_sync: waiting for the GPU at the end of a step.
        mps_launch: enqueueing one kernel on MPS.
        cpu_launch: calling one operator on the CPU.
        cpu_bandwidth_power: how the CPU's operators follow the bandwidth that it could reach: 1 if
            in step, 0 if they run alike on every chip. Equal at 100 GB/s.
        cpu_correction: the share (of the logarithm) of the CPU's deviation from its prediction
            that is expected on the GPU too; at most 1, so that a longer CPU step never speaks
            against MPS.
        training_launches: kernels of a training step / those of its forward pass.
        torch1_overhead: cost of launching and synchronising before torch 2 / since.
        half_cpu: arithmetic rate of float16 and bfloat16 on the CPU / that of float32.
        half_mps: the same on MPS.
        sure: the ratio from which a prediction is sure, by what is known and by the device that
            it finds faster (``mps``, ``cpu``).
        classes: by name; ``""`` is for no class.
    """

    mps_sync: float
    mps_launch: float
    cpu_launch: float
    cpu_bandwidth_power: float
    cpu_correction: float
    training_launches: float
    torch1_overhead: float
    half_cpu: float
    half_mps: float
    sure: dict[str, dict[str, float]]
    classes: dict[str, OpClass]


@functools.cache
def _constants() -> Constants:
    table = read_toml("speed.toml")
    classes = {name: OpClass(**row) for name, row in table["class"].items()}
    return Constants(
        **table["cost"],
        sure=table["sure"],
        classes={"": OpClass(**table["no_class"]), **classes},
    )


def launch_seconds(launches: float, device: str = "mps") -> float:
    """Return the seconds that enqueueing so many kernels on MPS takes, or calling on the CPU."""
    costs = _constants()
    return launches * (costs.cpu_launch if device == "cpu" else costs.mps_launch)


def wait_seconds() -> float:
    """Return the seconds that waiting for MPS to finish takes, once."""
    return _constants().mps_sync


def half_gains() -> tuple[float, float]:
    """Return the rates of float16 and bfloat16 / that of float32, on the CPU and on MPS."""
    return _constants().half_cpu, _constants().half_mps


def predict_speedup(
    workload: Workload, chip: str | Chip | None = None, *, machine: MachineLike | None = None
) -> Prediction:
    """Predict CPU time / MPS time of one step, without running anything.

    A measured ``workload.cpu_seconds`` goes before every count. The more of it grows with all else
    fixed, the more MPS is favoured. Without it a prediction is sure only where the chip has figures
    and the class, the launches, and flops or bytes are known.

    Args:
        workload: what is known of the step.
        chip: of the Mac: ``M3 Max``, as ``Chip`` with its core counts, or None if unknown.
        machine: the Mac itself, instead of its chip: a name (``"m1-16gb"``), a
            :class:`mpskit.Machine` or a :class:`mpskit.Host`.

    Raises:
        ArgumentTypeError: ``workload`` is no ``Workload``, ``chip`` neither a name nor a chip, or
            ``machine`` no machine.
        UnknownMachineError: no machine has that name.
        ArgumentError: ``chip`` and ``machine`` are given, or the machine is no Mac.
    """
    if not isinstance(workload, Workload):
        raise ArgumentTypeError(
            f"a workload is a mpskit.Workload, not {shown(workload)}", given=workload
        )
    if machine is not None:
        chip = _chip_of(machine, chip)
    return predict_with(_constants(), workload, chip_speed(chip))


def _chip_of(machine: MachineLike, chip: str | Chip | None) -> str | Chip | None:
    host = as_host(machine)
    if chip is not None:
        raise ArgumentError("give chip= or machine=, not both", given=chip)
    if not host.is_mac:
        raise ArgumentError(f"{host.summary} is no Mac: it has no MPS to predict", given=machine)
    return host.cpu_name if host.is_vm else host.chip  # chip_speed() knows a virtual chip by name


def predict_with(constants: Constants, workload: Workload, chip: ChipSpeed) -> Prediction:
    """Predict with other constants than the bundled ones: to compare them on held-out data."""
    op_class = workload.op_class if workload.op_class in constants.classes else None
    cpu, mps, bound = step_seconds(constants, workload, chip)
    sure_from = constants.sure[evidence(workload, chip)]["mps" if cpu > mps else "cpu"]
    return Prediction(
        mps_speedup=cpu / mps,
        sure=max(cpu / mps, mps / cpu) >= sure_from,
        basis="static" if workload.cpu_seconds is None else "cpu-step",
        cpu_seconds=cpu,
        mps_seconds=mps,
        bound=bound,
        launches=_launches(constants, constants.classes[op_class or ""], workload),
        op_class=op_class,
        chip=chip,
    )


def step_seconds(
    constants: Constants, workload: Workload, chip: ChipSpeed
) -> tuple[float, float, Bound]:
    """Return the step's time on the CPU (the measured one if known), on MPS, and what bounds that.

    Every measured CPU time is taken as it is; on MPS all times are predicted.
    """
    row = constants.classes.get(workload.op_class or "", constants.classes[""])
    launches = _launches(constants, row, workload)
    overhead = constants.torch1_overhead if _before_torch2(workload.torch_version) else 1.0
    on_cpu, on_gpu = _roofline(constants, workload, chip)
    static = launches * constants.cpu_launch + on_cpu * row.cpu_slowdown
    if not _counted(workload):
        static = max(static, launches * row.cpu_launch)
    cpu = static if workload.cpu_seconds is None else workload.cpu_seconds
    if _counted(workload):
        work = on_gpu * row.mps_slowdown * (cpu / static) ** constants.cpu_correction
    else:
        work = cpu / row.work_speedup
    sync, enqueue = constants.mps_sync * overhead, launches * constants.mps_launch * overhead
    mps = sync + max(enqueue, work)
    terms: dict[Bound, float] = {"synchronisation": sync, "launches": enqueue, "work": work}
    return cpu, mps, max(terms, key=lambda name: terms[name])


def evidence(workload: Workload, chip: ChipSpeed) -> str:
    """Return which row of ``sure`` applies: how much is known."""
    counted = _counted(workload) and bool(workload.launches) and workload.op_class is not None
    if workload.cpu_seconds is None:
        return "counts" if counted and chip.known else "nothing"
    return "cpu_step_and_counts" if counted else "cpu_step"


def _counted(workload: Workload) -> bool:
    return bool(workload.flops or workload.bytes_moved)


def _launches(constants: Constants, row: OpClass, workload: Workload) -> float:
    if workload.launches:
        return workload.launches
    return row.launches * (constants.training_launches if workload.training else 1.0)


@functools.lru_cache(maxsize=64)
def _before_torch2(version: str | None) -> bool:
    return older(version, "2.0")


def _roofline(constants: Constants, workload: Workload, chip: ChipSpeed) -> tuple[float, float]:
    """Return the least time of the work on the CPU and on the GPU, by arithmetic or by bandwidth.

    Without counts it is the time to read the parameters once.
    """
    half = workload.dtype in HALF_DTYPES
    flops = workload.flops or 0.0
    moved = workload.bytes_moved or 0.0
    if not _counted(workload):
        moved = (workload.params or 0) * (2.0 if half else 4.0)
    cpu_bandwidth = 1e11 * (chip.cpu_bandwidth_gbs / 100) ** constants.cpu_bandwidth_power
    cpu_rate = chip.cpu_tflops * 1e12 * (constants.half_cpu if half else 1.0)
    gpu_rate = chip.gpu_tflops * 1e12 * (constants.half_mps if half else 1.0)
    return (
        max(flops / cpu_rate, moved / cpu_bandwidth),
        max(flops / gpu_rate, moved / (chip.gpu_bandwidth_gbs * 1e9)),
    )
