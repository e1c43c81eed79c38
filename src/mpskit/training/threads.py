"""How many CPU threads suit a training process: :func:`cpu_threads`, :func:`set_cpu_threads`.

Torch starts a thread for every core it sees. On an Apple chip these include the efficiency cores,
which slow every parallel loop down, because it ends with its slowest thread. In a container they
may exceed the quota, and torch does not account for the ``DataLoader``'s workers.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from mpskit._base.arguments import check_count
from mpskit.backends.memory import as_device
from mpskit.host.named import check_cpus, given_host

if TYPE_CHECKING:
    import torch

    from mpskit.host import Host
    from mpskit.host.named import MachineLike

__all__ = ["ThreadSetting", "cpu_threads", "set_cpu_threads", "suitable_threads"]


def cpu_threads(
    device: str | torch.device | None = None,
    *,
    machine: MachineLike | None = None,
    num_workers: int = 0,
    host: MachineLike | None = None,
) -> int:
    """Return how many threads torch should use on the CPU, at least 1.

    That is the performance cores of an Apple chip, or the cores (not hyper-threads) of another
    processor, as far as affinity and the container's quota allow, less one for each
    ``DataLoader`` worker. With an accelerator one more is left for the thread that feeds it.

    Args:
        device: the device that trains; None is the CPU.
        machine: another machine: a name (``"m1-16gb"``, ``"T4"``), a :class:`mpskit.Machine` or a
            :class:`mpskit.Host`; None is this one.
        num_workers: workers of the ``DataLoader`` that run at the same time.
        host: the older name of ``machine``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        UnknownMachineError: no machine has that name.
        ArgumentError: torch knows no such device, ``num_workers`` is negative, or ``machine`` names
            a CUDA card, which says nothing about the CPUs beside it.
    """
    check_count("num_workers", num_workers, least=0)
    told = given_host(machine, host)
    on_cpu = device is None or as_device(device).type == "cpu"
    cores, usable = _cores(told)
    return suitable_threads(cores, usable, workers=num_workers, on_cpu=on_cpu)


def suitable_threads(cores: int | None, usable: int, *, workers: int, on_cpu: bool) -> int:
    """Return the thread count from facts alone.

    Args:
        cores: fast physical cores of the machine; None if unknown.
        usable: CPUs that this process may use.
        workers: ``DataLoader`` workers that run at the same time.
        on_cpu: whether the model itself runs on the CPU.
    """
    busy = workers + (0 if on_cpu else 1)
    return max(1, min(cores or usable, usable, usable - busy))


def _cores(host: Host | None) -> tuple[int | None, int]:
    """Return fast cores and usable CPUs; a ``Host`` does not tell cores from hyper-threads."""
    if host is not None:
        check_cpus(host)
        return host.performance_cores, host.usable_cpus
    from mpskit.host import Host as HostClass
    from mpskit.system.machine import read_readings

    readings = read_readings()
    this = HostClass.from_readings(readings)
    return this.performance_cores or readings.physical_cpus, this.usable_cpus


def set_cpu_threads(n: int | None = None) -> ThreadSetting:
    """Make torch use ``n`` threads on the CPU, at once; None takes :func:`cpu_threads`.

    Also a context manager that restores the previous count:

    >>> with set_cpu_threads(1) as setting:
    ...     setting.threads
    1

    Raises:
        ArgumentTypeError: ``n`` is not a whole number.
        ArgumentError: ``n`` is below 1.
    """
    import torch

    if n is not None:
        check_count("n", n, least=1)
    threads = cpu_threads() if n is None else n
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    return ThreadSetting(threads, previous)


class ThreadSetting:
    """The thread count in force, and the one before it.

    Attributes:
        threads: what torch uses now.
        previous: what :meth:`restore`, or leaving the ``with``, restores.
    """

    __slots__ = ("previous", "threads")

    def __init__(self, threads: int, previous: int) -> None:
        self.threads = threads
        self.previous = previous

    def __repr__(self) -> str:
        return f"ThreadSetting(threads={self.threads}, previous={self.previous})"

    def restore(self) -> None:
        """Restore the previous count."""
        import torch

        torch.set_num_threads(self.previous)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()
