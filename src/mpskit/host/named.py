"""``as_host``: the Host that a name, a ``Machine`` or a ``Host`` means, for every ``machine=``.

A CUDA card of ``data/cuda_cards.csv`` is a machine too, of which nothing but the card is known.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeAlias

from mpskit._base.arguments import shown, wrong_type
from mpskit.errors import ArgumentError, UnknownMachineError
from mpskit.host.cuda_cards import cuda_card, cuda_cards
from mpskit.host.host import Host
from mpskit.host.kinds import HostKind, device_there, mac_device
from mpskit.host.machines import Machine, find_machine

if TYPE_CHECKING:
    from mpskit.host.cuda_cards import CudaCard

__all__ = ["MachineLike", "as_host", "check_cpus", "given_host", "host_device"]

MachineLike: TypeAlias = str | Machine | Host


def as_host(machine: MachineLike) -> Host:
    """Return the host that is meant.

    Args:
        machine: a :class:`Host` (returned as it is), a :class:`Machine`, a profile's name or alias
            (``m1-16gb``, ``M3 Max 64GB``), or a CUDA card's name (``T4``, ``RTX 3090``).

    Raises:
        UnknownMachineError: nothing has that name; the message lists similar ones.
        ArgumentTypeError: ``machine`` is none of these.
    """
    if isinstance(machine, Host):
        return machine
    if isinstance(machine, str):
        return _of_name(machine)
    if not isinstance(machine, Machine):
        raise wrong_type("machine", "a name such as 'm1-16gb', a Machine or a Host", machine)
    return _of_machine(machine)


def given_host(machine: MachineLike | None, host: MachineLike | None = None) -> Host | None:
    """Return the host that either argument means, ``host`` being its older name; None for none.

    Raises:
        ArgumentError: both are given.
        UnknownMachineError, ArgumentTypeError: as for :func:`as_host`.
    """
    if machine is not None and host is not None:
        raise ArgumentError("give machine= or host=, not both", given=host)
    given = host if machine is None else machine
    return None if given is None else as_host(given)


def host_device(host: Host, device: str | None = None) -> str:
    """Return the type of the device that is meant on a machine, from facts alone.

    Args:
        host: the machine; nothing tells the cards of a Linux machine that is not named by one.
        device: what is asked for there (``mps``, ``cuda:0``); None for the machine's best.

    Raises:
        ArgumentError: the machine is not known to have that device.
    """
    mac = mac_device(host.kind, host.os_version, host.gpu_memory_bytes)
    own = "cuda" if host.cuda_card else mac
    return device_there(own, device, host.summary)


def check_cpus(host: Host) -> None:
    """Raise where nothing is known of a machine's CPUs.

    Raises:
        ArgumentError: the machine was named by its CUDA card.
    """
    if host.cuda_card is not None:
        raise ArgumentError(
            f"{shown(host.cuda_card)} names a CUDA card, which says nothing about the CPUs beside "
            "it: give a Host, or leave machine= away on that machine",
            given=host.cuda_card,
        )


@functools.lru_cache(maxsize=256)
def _of_name(name: str) -> Host:
    try:
        return _of_machine(find_machine(name))
    except UnknownMachineError as error:
        card = cuda_card(name)
        if card is None:
            raise _unknown(name, error) from None
        return _of_card(card)


def _of_machine(machine: Machine) -> Host:
    return Host.from_readings(machine.readings()).model_copy(
        update={"gpu_memory_bytes": machine.vram_bytes}
    )


def _of_card(card: CudaCard) -> Host:
    return Host(
        kind=HostKind.OTHER,
        os_name="unknown system",
        signs=("named by its CUDA card",),
        gpu_memory_bytes=card.memory_bytes,
        cuda_card=card.name,
    )


def _unknown(name: str, error: UnknownMachineError) -> UnknownMachineError:
    import difflib

    cards = {key: card.name for key, card in cuda_cards().items()}
    near = difflib.get_close_matches(name.strip().lower(), cards, n=2, cutoff=0.5)
    cards_near = ", ".join(cards[key] for key in near) or ", ".join(cards.values())
    return UnknownMachineError(f"{error}; CUDA cards: {cards_near}", given=name)
