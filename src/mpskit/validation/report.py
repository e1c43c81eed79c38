"""What a validation says: for each thing that mpskit claims, what the machine did."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from mpskit._base.values import Value

__all__ = ["Finding", "Outcome", "Validation"]


class Outcome(StrEnum):
    """How a claim fared."""

    HELD = "held"
    DID_NOT_HOLD = "did not hold"
    NOT_TRIED = "could not be tried"


class Finding(Value):
    """One claim and what the machine did.

    Attributes:
        check: the check that it belongs to.
        claim: what was compared, in a few words.
        outcome: how it fared.
        said: what mpskit says.
        found: what the machine did, or why it could not be tried.
    """

    check: str
    claim: str
    outcome: Outcome
    said: str = ""
    found: str = ""

    def __str__(self) -> str:
        if self.outcome is Outcome.HELD:
            return f"{self.claim}: {self.found or self.said}"
        if self.outcome is Outcome.NOT_TRIED:
            return f"{self.claim}: {self.found}"
        return f"{self.claim}: expected {self.said}, found {self.found}"


class Validation(Value):
    """What mpskit says of a machine beside what it does.

    Attributes:
        machine: in a few words; no user or host name.
        device: that was validated.
        torch_version: the torch that ran.
        mpskit_version: the mpskit that spoke.
        simulated: the machine is one that mpskit simulates.
        seconds: how long it took.
        findings: in the order of the checks.
    """

    machine: str
    device: str
    torch_version: str
    mpskit_version: str
    simulated: bool
    seconds: float
    findings: tuple[Finding, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every claim that could be tried held."""
        return all(f.outcome is not Outcome.DID_NOT_HOLD for f in self.findings)

    def __str__(self) -> str:
        counts = Counter(finding.outcome for finding in self.findings)
        head = (
            f"{self.device} on {self.machine}{' (simulated)' if self.simulated else ''}, "
            f"torch {self.torch_version}, mpskit {self.mpskit_version}: "
            f"{', '.join(f'{counts[outcome]} {outcome}' for outcome in Outcome)} "
            f"in {self.seconds:.0f} s"
        )
        lines = [head]
        for outcome in (Outcome.DID_NOT_HOLD, Outcome.NOT_TRIED, Outcome.HELD):
            found = [f for f in self.findings if f.outcome is outcome]
            if found:
                lines.append(f"{outcome}:")
                lines += [f"  {finding.check}: {finding}" for finding in found]
        return "\n".join(lines)
