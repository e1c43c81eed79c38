"""Causes of slowness: planted one by one and in threes on a simulated Mac, and the rules alone."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mpskit import diagnose, simulate
from mpskit.backends import versions
from mpskit.errors import ArgumentTypeError, DeviceUnavailableError
from mpskit.host.power import PowerState
from mpskit.speed.diagnosis import CauseKind, Diagnosis, Observation, causes_of
from mpskit.speed.predict import Prediction, predict_speedup, wait_seconds
from mpskit.speed.watch import Wait, Watched
from mpskit.speed.workload import Workload

HERE = Path(__file__)
pytestmark = pytest.mark.filterwarnings("ignore:The operator .* will fall back to run on the CPU")
Plant = Callable[[torch.nn.Module, torch.Tensor], None]


@pytest.fixture(autouse=True)
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Mac whose missing operators run on the CPU."""
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    with simulate("m1-16gb"):
        yield


def line_of(marker: str) -> int:
    lines = HERE.read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.endswith(f"# {marker}"))


def item(_: torch.nn.Module, result: torch.Tensor) -> None:
    result.mean().item()  # the item


def to_cpu(_: torch.nn.Module, result: torch.Tensor) -> None:
    result.detach().cpu()  # the copy


def truth(_: torch.nn.Module, result: torch.Tensor) -> None:
    if result.mean() > 1e9:  # the truth
        raise ValueError


def mask(_: torch.nn.Module, result: torch.Tensor) -> None:
    result[result > 0]  # the mask


def printing(_: torch.nn.Module, result: torch.Tensor) -> None:
    str(result[0, 0, 0])  # the print


def cache(_: torch.nn.Module, result: torch.Tensor) -> None:
    torch.mps.empty_cache()  # the cache


def fallback(_: torch.nn.Module, result: torch.Tensor) -> None:
    torch.linalg.eigvals(result[0, 0, :4, :4])  # the fallback


PLANTED: dict[str, tuple[Plant, CauseKind]] = {
    "item": (item, CauseKind.WAITS),
    "copy": (to_cpu, CauseKind.WAITS),
    "truth": (truth, CauseKind.WAITS),
    "mask": (mask, CauseKind.WAITS),
    "print": (printing, CauseKind.WAITS),
    "cache": (cache, CauseKind.WAITS),
    "fallback": (fallback, CauseKind.FALLBACK),
}


def steps_with(*plants: Plant, size: int = 16) -> Callable[[str], Callable[[], None]]:
    def make(device: str) -> Callable[[], None]:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(8, 8, 3, padding=1).to(device)
        x = torch.randn(2, 8, size, size, device=device)

        def step() -> None:
            result = model(x)
            for plant in plants:
                plant(model, result)

        return step

    return make


def found(diagnosis: Diagnosis) -> set[tuple[CauseKind, int]]:
    return {
        (cause.kind, int(cause.place.rpartition(":")[2]))
        for cause in diagnosis.causes
        if cause.place is not None
    }


def test_a_clean_step_has_no_cause():
    def make(device):
        model = torch.nn.Conv2d(64, 64, 3, padding=1).to(device)
        x = torch.randn(8, 64, 64, 64, device=device)
        return lambda: model(x).square().mean().backward()

    diagnosis = diagnose(make, seconds=0.01)
    assert diagnosis.causes == ()
    assert "no cause of slowness was found" in str(diagnosis)
    assert diagnosis.basis == "predicted"
    assert any("simulated" in note for note in diagnosis.notes)


@pytest.mark.parametrize("name", PLANTED)
def test_each_cause_is_found_alone_at_its_line(name):
    plant, kind = PLANTED[name]
    diagnosis = diagnose(steps_with(plant), seconds=0.01)
    assert found(diagnosis) == {(kind, line_of(f"the {name}"))}
    assert all(0 <= cause.share <= 1 for cause in diagnosis.causes if cause.share is not None)


@pytest.mark.parametrize("names", list(itertools.combinations(PLANTED, 3))[::6])
def test_causes_are_found_together(names):
    diagnosis = diagnose(steps_with(*(PLANTED[name][0] for name in names)), seconds=0.01)
    assert found(diagnosis) == {(PLANTED[n][1], line_of(f"the {n}")) for n in names}


def kinds(diagnosis: Diagnosis) -> set[CauseKind]:
    return {cause.kind for cause in diagnosis.causes}


def test_too_little_work_per_launch():
    def make(device):
        x = torch.ones(4, 4, device=device)
        return lambda: [x.mul(2.0) for _ in range(200)]

    diagnosis = diagnose(make, seconds=0.01)
    assert kinds(diagnosis) == {CauseKind.LAUNCHES}
    assert diagnosis.causes[0].count == diagnosis.launches == 200


def test_autocast_that_only_adds_casts():
    def make(device):
        model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(20)]).to(device)
        x = torch.ones(4, 8, device=device)

        def step():
            with torch.autocast(device, torch.float16):
                model(x)

        return step

    assert CauseKind.AUTOCAST in kinds(diagnose(make, seconds=0.01))


def test_autocast_that_pays_is_no_cause():
    def make(device):
        model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(3)]).to(device)
        x = torch.ones(2048, 2048, device=device)

        def step():
            with torch.no_grad(), torch.autocast(device, torch.float16):
                model(x)

        return step

    assert CauseKind.AUTOCAST not in kinds(diagnose(make, seconds=0.01))


def test_memory_that_grows_with_the_shapes():
    def make(device):
        lengths = itertools.count(1)

        def step():
            torch.ones(64 * next(lengths), 4096, device=device).mul(2.0)

        return step

    # Placement heaps (from torch 2.14) serve tensors of any size from what is free.
    grows = not versions.has("mps.placement_heaps", torch.__version__)
    assert (CauseKind.GROWTH in kinds(diagnose(make, seconds=0.01))) is grows


def test_tensors_that_something_keeps_alive():
    def make(device):
        x, kept = torch.ones(64, 1024, device=device), []
        return lambda: kept.append(x * 2)

    growth = [c for c in diagnose(make, seconds=0.01).causes if c.kind is CauseKind.GROWTH]
    assert "keeps them alive" in growth[0].text


def test_deterministic_algorithms():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        diagnosis = diagnose(steps_with(), seconds=0.01)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert CauseKind.DETERMINISTIC in kinds(diagnosis)


MPS = predict_speedup(Workload(flops=1e6, launches=100, op_class="mlp"), "M1")
LARGE = predict_speedup(Workload(flops=1e12, launches=100, op_class="cnn"), "M1")


def seen(**facts) -> Observation:
    return Observation(**{"device": "mps", "seconds": 0.1, "watched": Watched(), **facts})


GIB = 1 << 30


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        (seen(), []),
        (seen(prediction=LARGE), []),
        (seen(watched=Watched(loader_seconds=0.05)), [(CauseKind.LOADER, 0.5)]),
        (seen(watched=Watched(loader_seconds=0.01)), []),
        (seen(seconds=0.01, watched=Watched(loader_seconds=0.05)), [(CauseKind.LOADER, 1.0)]),
        (seen(watched=Watched(waits=Counter({(Wait.VALUE, ""): 1}))), []),
        (seen(without_autocast=0.05), [(CauseKind.AUTOCAST, 0.5)]),
        (seen(without_autocast=0.2), []),
        (seen(without_determinism=0.025), [(CauseKind.DETERMINISTIC, 0.75)]),
        (seen(without_determinism=0.1), [(CauseKind.DETERMINISTIC, None)]),
        (seen(power=PowerState(low_power_mode=True)), [(CauseKind.POWER, None)]),
        (seen(power=PowerState(on_battery=True)), [(CauseKind.POWER, None)]),
        (seen(power=PowerState(fanless=True)), []),
        (seen(swap_share=0.2), [(CauseKind.PRESSURE, None)]),
        (
            seen(held_bytes=[9 * GIB] * 3, live_bytes=[GIB] * 3, usable_bytes=8 * GIB),
            [(CauseKind.PRESSURE, None)],
        ),
        (
            seen(held_bytes=[9 * GIB] * 3, live_bytes=[8 * GIB] * 3, usable_bytes=8 * GIB),
            [(CauseKind.PRESSURE, None)],
        ),
        (seen(held_bytes=[4 * GIB] * 3, live_bytes=[GIB] * 3, usable_bytes=8 * GIB), []),
        (seen(held_bytes=[1, 2, 3], live_bytes=[1, 1, 1], shapes=6), [(CauseKind.GROWTH, None)]),
        (seen(held_bytes=[1, 2, 3], live_bytes=[1, 1, 1], shapes=1), []),
        (seen(held_bytes=[3, 3, 3], live_bytes=[1, 2, 3]), [(CauseKind.GROWTH, None)]),
        (seen(held_bytes=[3, 3, 3], live_bytes=[1, 2, 1]), []),
    ],
)
def test_what_follows_from_an_observation(observation, expected):
    assert [(cause.kind, cause.share) for cause in causes_of(observation)] == expected


def test_the_largest_share_comes_first():
    observation = seen(
        without_autocast=0.09,
        without_determinism=0.05,
        power=PowerState(low_power_mode=True),
        watched=Watched(loader_seconds=0.03),
    )
    assert [cause.kind for cause in causes_of(observation)] == [
        CauseKind.DETERMINISTIC,
        CauseKind.LOADER,
        CauseKind.AUTOCAST,
        CauseKind.POWER,
    ]


def test_a_fallback_waits_twice_for_each_call():
    watched = Watched(fallbacks=Counter({("aten::foo", "train.py:3"): 4, ("aten::bar", ""): 1}))
    waits = wait_seconds()
    foo, bar = causes_of(seen(watched=watched, seconds=100 * waits))
    assert (foo.kind, foo.place, foo.count) == (CauseKind.FALLBACK, "train.py:3", 4)
    assert (bar.place, bar.count) == (None, 1)
    assert (foo.share, bar.share) == (pytest.approx(0.08), pytest.approx(0.02))


MIB = 1 << 20


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"watched": Watched(loader_seconds=0.05)},
            "the step waits 50 ms for the DataLoader's next batch (50% of the step). ",
        ),
        (
            {"watched": Watched(casts=7), "without_autocast": 0.05},
            "autocast adds 7 casts a step and saves less than they cost (50% of the step). ",
        ),
        (
            {"watched": Watched(waits=Counter({(Wait.COPY, "a.py:3"): 1})), "seconds": 1e-3},
            "a.py:3: " + Wait.COPY.value + ", once a step: the host waits",
        ),
        (
            {"watched": Watched(waits=Counter({(Wait.COPY, ""): 3})), "seconds": 1e-3},
            Wait.COPY.value + ", 3 times a step: the host waits",
        ),
        (
            {"watched": Watched(fallbacks=Counter({("aten::foo", ""): 1}))},
            "aten::foo has no kernel on MPS and runs on the CPU",
        ),
        (
            {"held_bytes": [MIB, MIB, MIB, MIB], "live_bytes": [MIB, 2 * MIB, 3 * MIB, 7 * MIB]},
            "tensors hold 2.00 MiB more after every step: ",
        ),
        (
            {"held_bytes": [MIB, MIB, 2 * MIB], "live_bytes": [MIB] * 3, "shapes": 4},
            "the driver's memory grew from 1.00 MiB to 2.00 MiB in 3 steps of 4 different shapes: ",
        ),
        (
            {"held_bytes": [9 * MIB], "live_bytes": [MIB], "usable_bytes": 8 * MIB},
            "the driver holds 9.00 MiB for 1.00 MiB of tensors. ",
        ),
        (
            {"held_bytes": [9 * MIB], "live_bytes": [8 * MIB], "usable_bytes": 8 * MIB},
            "the driver holds 9.00 MiB, more than the machine can give. ",
        ),
        (
            {"held_bytes": [9 * MIB], "live_bytes": [8 * MIB], "swap_share": 0.06},
            "the machine's memory is full and it swaps. ",
        ),
    ],
)
def test_causes_in_words(facts, said):
    (cause,) = causes_of(seen(**facts))
    assert str(cause).startswith(said)


@pytest.mark.parametrize(
    ("facts", "kind", "found"),
    [
        # From a share of 2% on; a cache that is emptied in any case.
        ({"waits": Counter({(Wait.COPY, ""): 2})}, CauseKind.WAITS, True),
        ({"waits": Counter({(Wait.COPY, ""): 1})}, CauseKind.WAITS, False),
        ({"waits": Counter({(Wait.CACHE, ""): 1})}, CauseKind.WAITS, True),
        ({"loader_seconds": 0.15}, CauseKind.LOADER, True),
        ({"loader_seconds": 0.149}, CauseKind.LOADER, False),
    ],
)
def test_the_least_share_that_is_told(facts, kind, found):
    """A step as long as a hundred waits, or a loader's share of a second."""
    seconds = 100 * wait_seconds() if "waits" in facts else 1.0
    causes = causes_of(seen(watched=Watched(**facts), seconds=seconds))
    assert [cause.kind for cause in causes] == [kind] * found


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"held_bytes": [10, 10, 12], "live_bytes": [1, 1, 1], "shapes": 3}, False),
        ({"held_bytes": [10, 10, 13], "live_bytes": [1, 1, 1], "shapes": 3}, True),
        ({"held_bytes": [8 * MIB], "usable_bytes": 8 * MIB}, False),
        ({"held_bytes": [8 * MIB + 1], "usable_bytes": 8 * MIB}, True),
        ({"swap_share": 0.05}, False),
    ],
)
def test_growth_and_pressure_at_their_bounds(facts, found):
    assert bool(causes_of(seen(**facts))) is found


def test_launches_in_words():
    watched = Watched()
    watched.counts.launches = 1000
    (cause,) = causes_of(seen(prediction=MPS, watched=watched, seconds=1e-3))
    assert "1000 launches with too little work in each" in cause.text
    faster = 1 / MPS.mps_speedup
    assert cause.fix.endswith(f"it is predicted {faster:.1f} times faster there.")
    assert (cause.share, cause.count) == (1.0, 1000)


def test_a_diagnosis_in_words():
    cause = causes_of(seen(swap_share=0.2))[0]
    found = Diagnosis(device="mps", step_seconds=0.0125, basis="predicted", launches=7)
    assert str(found).splitlines() == [
        "12.5 ms a step on mps (predicted), 7 launches",
        "no cause of slowness was found",
    ]
    found = found.model_copy(update={"causes": (cause,), "notes": ("a note",)})
    assert str(found).splitlines()[1:] == [f"- {cause}", "note: a note"]


def test_a_step_on_a_simulated_mac_takes_what_its_counts_predict():
    """A step of one matrix product is of the class of matrix products, not a recurrent one."""

    def make(device):
        x = torch.ones(2048, 2048, device=device)
        return lambda: x @ x

    counted = Workload(
        flops=2 * 2048**3, bytes_moved=3 * 4 * 2048**2, launches=1, dtype="float32", op_class=None
    )
    found = diagnose(make, seconds=0.01)
    assert found.launches == 1
    assert found.step_seconds == pytest.approx(
        predict_speedup(counted, machine="m1-16gb").mps_seconds
    )


def test_what_takes_power_is_told_with_its_mend():
    (cause,) = causes_of(seen(power=PowerState(on_battery=True)))
    assert cause.text == "It runs from the battery: macOS may lower the clocks"
    assert cause.fix == "Plug it in."


@pytest.mark.parametrize(
    ("held", "shapes", "grows"),
    [([2, 2, 3], 3, True), ([2, 2, 3], 2, False), ([3, 3, 3], 3, False), ([2, 3], 3, False)],
)
def test_growth_with_shapes_needs_three_of_both(held, shapes, grows):
    sizes = [size * GIB for size in held]
    found = causes_of(seen(held_bytes=sizes, live_bytes=[GIB] * len(held), shapes=shapes))
    assert [cause.kind for cause in found] == [CauseKind.GROWTH] * grows


def test_launches_are_a_cause_only_where_the_cpu_is_faster():
    few = Watched()
    few.counts.launches = 1000
    assert isinstance(MPS, Prediction)
    assert MPS.mps_speedup < 1
    assert [c.kind for c in causes_of(seen(prediction=MPS, watched=few))] == [CauseKind.LAUNCHES]
    assert causes_of(seen(prediction=LARGE, watched=few)) == []


def test_a_diagnosis_is_a_value_that_can_be_stored():
    diagnosis = diagnose(steps_with(item), seconds=0.01)
    assert Diagnosis.model_validate(json.loads(diagnosis.model_dump_json())) == diagnosis


def test_what_the_note_says_of_a_simulated_machine():
    def notes(device):
        return diagnose(lambda name: lambda: torch.ones(4, device=name) + 1, device, seconds=0.01)

    assert [n for n in notes("mps").notes if "predicted, not measured" in n]
    on_cpu = notes("cpu")
    assert (on_cpu.basis, len(on_cpu.notes)) == ("measured", 1)
    assert "this computer's" in on_cpu.notes[0]


def test_nothing_stays_changed():
    before = (torch.Tensor.__repr__, torch.autocast.__enter__, torch.mps.empty_cache)

    def broken(_, __):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        diagnose(steps_with(item, broken), seconds=0.01)
    assert (torch.Tensor.__repr__, torch.autocast.__enter__, torch.mps.empty_cache) == before


@pytest.mark.parametrize(
    ("make", "device", "error"),
    [
        (None, None, ArgumentTypeError),
        (lambda _: None, None, ArgumentTypeError),
        (lambda _: int, "cuda", DeviceUnavailableError),
        (lambda _: int, 3, ArgumentTypeError),
    ],
)
def test_bad_arguments(make, device, error):
    with pytest.raises(error):
        diagnose(make, device)
