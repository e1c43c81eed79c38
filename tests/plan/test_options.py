"""What else would fit, of a made-up model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.plan.made_up import GIB, found, job

from mpskit.plan import options as rules
from mpskit.plan.options import options
from mpskit.plan.places import find_place
from mpskit.plan.settings import Setting

LORA = Setting(rank=8, seq_len=512, rows=1)


def offered(
    needs: dict[str, float],
    *,
    leanest: float,
    machine: str = "m1-16gb",
    device: str | None = None,
    setting: Setting = LORA,
    **fields: Any,
) -> list[tuple[str, str]]:
    """Return the options beside a budget of 10 GiB.

    Args:
        needs: GiB by what is tried: a length, ``nf4``, a model's name, ``cuda``; others are
            refused.
        leanest: GiB of the leanest way there is.
        machine: whose options.
        device: of it.
        setting: of the leanest way.
        fields: of the job.
    """

    def size(tried: Setting) -> int | None:
        name = tried.base or str(tried.seq_len)
        return int(needs[name] * GIB) if name in needs else None

    def other(name: str) -> Any:
        return job(lambda _: int(needs[name] * GIB) if name in needs else None)

    place = replace(find_place(machine, device), usable_bytes=10 * GIB)
    least = found(setting, int(leanest * GIB), 10 * GIB)
    model = job(size, on=other, **fields)
    return [(option.words, option.answer) for option in options(model, place, least)]


@pytest.fixture(autouse=True)
def _no_package_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "missing_quantization", lambda _: None)


@pytest.mark.parametrize(
    ("needs", "leanest", "expected"),
    [
        # The longest that fits, of those that are shorter.
        ({"512": 1, "256": 3, "128": 2}, 20, [("256 tokens in a row (fp32)", "fits")]),
        ({"256": 30, "128": 2}, 20, [("128 tokens in a row (fp32)", "fits")]),
        ({"1024": 1}, 20, []),
        # Where nothing fits, what is only tight helps; beside what is tight it does not.
        ({"256": 9.9}, 20, [("256 tokens in a row (fp32)", "tight")]),
        ({"256": 9.9}, 9.95, []),
        ({"256": 5}, 9.95, [("256 tokens in a row (fp32)", "fits")]),
    ],
)
def test_fewer_tokens(
    needs: dict[str, float], leanest: float, expected: list[tuple[str, str]]
) -> None:
    assert offered(needs, leanest=leanest, machine="T4") == expected


def test_a_module_has_no_tokens() -> None:
    alone = replace(LORA, seq_len=None)
    assert offered({"256": 1, "None": 1}, leanest=20, machine="T4", setting=alone) == []


@pytest.mark.parametrize(
    ("package", "rank", "offers"),
    [("bitsandbytes>=1", 8, True), ("bitsandbytes>=1", None, False), (None, 8, False)],
)
def test_a_package_for_four_bits(
    package: str | None, rank: int | None, offers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "missing_quantization", lambda _: package)
    setting = replace(LORA, rank=rank)
    words = [("a 4-bit base (pip install 'bitsandbytes>=1')", "fits")]
    assert offered({"nf4": 5}, leanest=20, machine="T4", setting=setting) == words * offers


def test_the_largest_smaller_model_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(name: str, _: object) -> list[str]:
        assert name == "made-up"
        return ["large", "middle", "small"]

    needs = {"large": 30, "middle": 4, "small": 2}
    monkeypatch.setattr(rules, "smaller_models", asked)
    like = {"like": lambda name: job(lambda _: needs[name] * GIB)}
    assert offered({}, leanest=20, machine="T4", **like) == [("middle instead", "fits")]
    assert offered({}, leanest=20, machine="T4") == []


def test_the_smallest_mac_with_more_memory() -> None:
    ((words, answer),) = offered({}, leanest=11)
    assert words.startswith("the smallest Mac for it: ")
    assert words.endswith(", 24 GiB")
    assert answer == "fits"
    # What fits in the machine's own memory, if not in its budget, is no larger Mac.
    ((words, _),) = offered({}, leanest=9.99)
    assert not words.endswith(", 8 GiB")
    assert offered({}, leanest=9999) == []
    assert offered({}, leanest=11, device="cpu") == []


@pytest.mark.parametrize(
    ("cuda", "leanest", "cards", "expected"),
    [
        (11, 20, 1, [("in the cloud, one T4", "fits")]),
        (11, 20, 4, [("in the cloud, 4 x T4", "fits")]),
        (18, 30, 1, [("in the cloud, one RTX 3090", "fits")]),
        (9999, 30, 1, []),
        (None, 30, 1, []),
    ],
)
def test_the_first_card_that_helps(
    cuda: float | None, leanest: float, cards: int, expected: list[tuple[str, str]]
) -> None:
    needs = {} if cuda is None else {"cuda": cuda}
    setting = replace(LORA, world_size=cards)
    assert offered(needs, leanest=leanest, device="cpu", setting=setting) == expected
    assert offered(needs, leanest=leanest, machine="T4", setting=setting) == []
