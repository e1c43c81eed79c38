"""``Machine``: a Mac to plan for or to simulate, and the profiles known by name.

The chip table gives a profile ``<chip>-<ram>gb`` for each chip and each RAM size that it is sold
with (``m1-8gb``, ``m3-max-64gb``), and the products as aliases (``macbook-air-m1-8gb``).
``data/machines.toml`` has the few others: Intel Macs, Rosetta and hosted runners.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from mpskit._base.arguments import shown
from mpskit._base.data import read_csv, read_toml
from mpskit._base.sizes import GIB
from mpskit._base.values import Value
from mpskit.errors import ArgumentError, ArgumentTypeError, UnknownMachineError
from mpskit.host.chips import Chip, chip_rows, parse_chip
from mpskit.host.kinds import DEFAULT_MACOS, HostKind

if TYPE_CHECKING:
    from mpskit.host.readings import Readings

__all__ = ["Machine", "aliases", "find_machine", "machine_names", "machines"]

_PRODUCT = re.compile(r"MacBook Air|MacBook Pro|MacBook Neo|Mac mini|Mac Studio|Mac Pro|iMac")
_MAC_KINDS = (
    HostKind.APPLE_SILICON,
    HostKind.APPLE_SILICON_ROSETTA,
    HostKind.INTEL_MAC,
    HostKind.MAC_VM,
)


class Machine(Value):
    """A Mac described by a few facts.

    >>> print(Machine(chip="M3 Max", ram_gib=64, macos="15.6"))
    M3 Max with 64 GiB, macOS 15.6

    Attributes:
        chip: ``M3 Max``, ``A18 Pro``, ``Apple M1 (Virtual)``, ``Intel Core i9-9980HK``.
        ram_gib: RAM in GiB.
        macos: the macOS version, ``15.6`` or just ``26``.
        kind: what kind of Mac; derived from the chip's name by default.
        gpu_cores: GPU cores of an Apple chip; by default the largest sold with that much RAM.
        cpu_cores: CPUs that macOS shows; by default the chip table's.
        gpu: the name of a discrete GPU.
        vram_gib: the memory of a discrete GPU in GiB.
        model: the model identifier, ``MacBookPro16,1``, if known.
        name: the profile's name; None for a machine that is no profile.

    Raises:
        ArgumentError: a value is invalid.
        ArgumentTypeError: a value has the wrong type, or a field is missing or unknown.
    """

    chip: str = Field(min_length=1, max_length=80)
    ram_gib: int = Field(strict=True, ge=1, le=4096)
    macos: str = DEFAULT_MACOS
    kind: HostKind = HostKind.APPLE_SILICON
    gpu_cores: int | None = Field(default=None, strict=True, ge=1, le=1024)
    cpu_cores: int | None = Field(default=None, strict=True, ge=1, le=1024)
    gpu: str | None = None
    vram_gib: int | None = Field(default=None, strict=True, ge=1, le=1024)
    model: str | None = None
    name: str | None = None

    def __init__(self, **facts: Any) -> None:
        try:
            super().__init__(**facts)
        except ValidationError as error:
            raise _argument_error(error, facts) from None

    @field_validator("macos", mode="before")
    @classmethod
    def _version(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int | float) else value
        if isinstance(text, str) and not re.fullmatch(r"\d{2}(\.\d{1,3}){0,2}", text, re.ASCII):
            raise ValueError(f"{shown(text)} is not a macOS version such as '15.6' or '26'")
        return text

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, facts: Any) -> Any:
        known = isinstance(facts, dict) and isinstance(facts.get("chip"), str)
        return _completed(facts) if known else facts

    @field_validator("kind")
    @classmethod
    def _is_a_mac(cls, kind: HostKind) -> HostKind:
        if kind not in _MAC_KINDS:
            raise ValueError(f"a Machine is a Mac, not {kind.value!r}")
        return kind

    def __str__(self) -> str:
        gpu = (
            f", {self.gpu}" + (f" {self.vram_gib} GiB" if self.vram_gib else "") if self.gpu else ""
        )
        how = {
            HostKind.APPLE_SILICON_ROSETTA: ", Python under Rosetta",
            HostKind.MAC_VM: ", virtual",
        }.get(self.kind, "")
        name = f"{self.name}: " if self.name else ""
        return f"{name}{self.chip} with {self.ram_gib} GiB{gpu}, macOS {self.macos}{how}"

    @property
    def ram_bytes(self) -> int:
        """RAM in bytes."""
        return self.ram_gib * GIB

    @property
    def vram_bytes(self) -> int | None:
        """The memory of a discrete GPU in bytes; None without one."""
        return self.vram_gib * GIB if self.vram_gib else None

    @property
    def is_apple_silicon(self) -> bool:
        """Whether the chip is Apple's, including under Rosetta and in a virtual machine."""
        return self.kind is not HostKind.INTEL_MAC

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that :func:`find_machine` accepts for this profile."""
        return tuple(alias for alias, name in aliases().items() if name == self.name)

    @property
    def chip_facts(self) -> Chip | None:
        """The chip with its figures from the chip table; None for an Intel Mac."""
        return parse_chip(self.chip, gpu_cores=self.gpu_cores, ram_gib=self.ram_gib)

    def readings(self) -> Readings:
        """Return the readings that such a machine would give.

        Three quarters of the RAM count as available: macOS and open programs take the rest. This
        share is an assumption, the only figure here without a source.
        """
        from mpskit.host.machine_readings import readings_of

        return readings_of(self)


def _argument_error(
    error: ValidationError, facts: Mapping[str, Any]
) -> ArgumentError | ArgumentTypeError:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "machine"
    given = facts.get(field, dict(facts))
    reason = first["msg"].removeprefix("Value error, ")
    wrong_type = first["type"].endswith(("_type", "_parsing", "missing", "extra_forbidden"))
    kind = ArgumentTypeError if wrong_type else ArgumentError
    return kind(f"Machine: {field}: {reason}", given=given)


def _completed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the chip's name says: the kind of Mac, and its GPU."""
    chip = facts["chip"]
    defaults = {"kind": _kind_of(chip), "gpu_cores": _larger_gpu(chip, facts.get("ram_gib"))}
    return defaults | dict(facts)


def _kind_of(chip: str) -> HostKind:
    if "virtual" in chip.lower():
        return HostKind.MAC_VM
    return HostKind.INTEL_MAC if parse_chip(_branded(chip)) is None else HostKind.APPLE_SILICON


def _branded(chip: str) -> str:
    """Return the brand string: an Apple chip's name gets its maker in front."""
    foreign = re.search(r"apple|intel|amd", chip, re.IGNORECASE)
    return chip if foreign or parse_chip(chip) is None else f"Apple {chip}"


def _larger_gpu(chip: str, ram_gib: Any) -> int | None:
    facts = parse_chip(chip)
    if facts is None or "virtual" in chip.lower():
        return None
    rows = chip_rows(facts.name)
    rows = tuple(row for row in rows if ram_gib in row.ram_options_gib) or rows
    return max((row.chip.gpu_cores or 0 for row in rows), default=0) or None


def _slug(text: str) -> str:
    return re.sub(r"[\s_-]+", "-", text.strip().lower())


def _sizes(cells: Mapping[str, str]) -> dict[str, int]:
    """Return the profiles of a row of the chip table, each with its RAM in GiB."""
    sizes = map(int, cells["ram_options_gib"].split("|"))
    return {f"{_slug(cells['chip'])}-{size}gb": size for size in sizes}


@functools.cache
def _sold() -> Mapping[str, Mapping[str, Any]]:
    """Return the facts of every chip with every RAM size by name; no machine is made of them."""
    rows = read_csv("apple_chips.csv")
    named = {name: (cells, size) for cells in rows for name, size in _sizes(cells).items()}
    return {
        name: {"name": name, "chip": cells["chip"], "ram_gib": size}
        for name, (cells, size) in sorted(named.items(), key=lambda item: _order(*item[1]))
    }


@functools.cache
def _facts() -> Mapping[str, Mapping[str, Any]]:
    """Return the facts of every profile by name."""
    odd = read_toml("machines.toml")["machine"].items()
    return {**_sold()} | {name: {"name": name, **facts} for name, facts in odd}


def _order(cells: Mapping[str, str], size: int) -> tuple[object, ...]:
    tiers = ("phone", "base", "pro", "max", "ultra")
    generation = int(cells["generation"].lstrip("AM"))
    return (cells["chip"].startswith("M"), generation, tiers.index(cells["tier"]), size)


@functools.cache
def _machine(name: str) -> Machine:
    # The tests validate every profile.
    facts = _completed(_sold().get(name) or _facts()[name])
    facts["kind"] = HostKind(facts["kind"])
    return Machine.model_construct(**facts)


def machines() -> Mapping[str, Machine]:
    """Return every profile by name."""
    return {name: _machine(name) for name in _facts()}


def sold_macs() -> list[Machine]:
    """Return the profiles of Macs with Apple silicon that one can buy, the smallest first."""
    sold = [machine for machine in machines().values() if machine.kind is HostKind.APPLE_SILICON]
    return sorted(sold, key=lambda machine: machine.ram_gib)


@functools.cache
def aliases() -> Mapping[str, str]:
    """Return the aliases of profiles, each with the profile's name."""
    found = {
        f"{_slug(product[0])}-{name}": name
        for cells in read_csv("apple_chips.csv")
        for mac in cells["macs"].split(";")
        if (product := _PRODUCT.match(mac.strip()))
        for name in _sizes(cells)
    }
    return found | dict(read_toml("machines.toml")["alias"])


def machine_names() -> tuple[str, ...]:
    """Return the names of all profiles, aliases not included."""
    return tuple(_facts())


def find_machine(machine: str | Machine) -> Machine:
    """Return the profile of a name or alias; a :class:`Machine` is returned as it is.

    Args:
        machine: ``m1-8gb``, ``macbook-air-m1-8gb``, ``M3 Max 64GB``; case does not matter, and
            spaces and underscores count as hyphens.

    Raises:
        UnknownMachineError: no profile has that name; the message lists similar ones.
        ArgumentTypeError: ``machine`` is neither a str nor a Machine.
    """
    if isinstance(machine, Machine):
        return machine
    if not isinstance(machine, str):
        raise ArgumentTypeError(
            f"a machine is a name or a Machine, not {shown(machine)}", given=machine
        )
    slug = _slug(machine)
    for name in (re.sub(r"-?g(?:i?b)?$", "gb", slug.removeprefix("apple-")), slug):
        if (profile := _profile(name)) is not None:
            return _machine(profile)
    raise _unknown(machine, slug)


def _profile(name: str) -> str | None:
    """Return the profile that a name or alias stands for; most names need no second table."""
    if name in _sold():
        return name
    name = aliases().get(name, name)
    return name if name in _facts() else None


def _unknown(machine: str, name: str) -> UnknownMachineError:
    import difflib

    near = difflib.get_close_matches(name, [*_facts(), *aliases()], n=4, cutoff=0.5)
    hint = f"near: {', '.join(near)}; " if near else ""
    return UnknownMachineError(
        f"no machine is called {shown(machine)}: {hint}`mpskit simulate --list` shows all, and "
        "Machine(chip=..., ram_gib=..., macos=...) makes one",
        given=machine,
    )
