"""Every kind of mistake is found at its line in one pass; clean code has none; strict stops."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import mpskit

pytestmark = pytest.mark.needs_torch("simulation")

X = torch.ones(8, 64)
CASES = {}


def planted(kind, severity="stops"):
    """Register a loop's body whose line with `# here` has a mistake."""

    def keep(body):
        CASES[body.__name__] = (body, kind, severity)
        return body

    return keep


@planted("host-sync", "slow")
def item(out):
    out.sum().item()  # here


@planted("host-sync", "slow")
def truth(out):
    if out.sum() > 3:  # here
        pass


@planted("host-sync", "slow")
def to_float(out):
    float(out.detach().sum())  # here


@planted("host-sync", "slow")
def to_cpu(out):
    out.cpu()  # here


@planted("host-sync", "slow")
def to_device_cpu(out):
    out.to("cpu")  # here


@planted("host-sync", "slow")
def to_list(out):
    out.tolist()  # here


@planted("host-sync", "slow")
def printed(out):
    repr(out)  # here


@planted("host-sync", "slow")
def mask(out):
    labels = torch.arange(8, device="mps")
    labels[labels > 3]  # here


@planted("empty-cache", "slow")
def cache(out):
    torch.mps.empty_cache()  # here


@planted("dtype")
def float64_move(out):
    torch.ones(8, dtype=torch.float64).to("mps")  # here


@planted("dtype")
def float64_numpy(out):
    torch.from_numpy(np.ones((8, 64))).to("mps")  # here


@planted("dtype")
def float64_factory(out):
    torch.zeros(8, dtype=torch.float64, device="mps")  # here


@planted("dtype")
def float64_cast(out):
    out.double()  # here


@planted("device-mismatch")
def mixed(out):
    out + torch.ones(8, 64)  # here


@planted("device-mismatch")
def mixed_linear(out):
    functional.linear(out, torch.ones(4, 64))  # here


@planted("device-mismatch")
def mixed_product(out):
    out @ torch.ones(64, 4)  # here


@planted("device-mismatch")
def numpy_of_mps(out):
    out.detach().numpy()  # here


@planted("missing-operator")
def missing(out):
    torch.linalg.eigvals(torch.eye(8, device="mps"))  # here


@planted("missing-operator")
def missing_too(out):
    torch.linalg.eig(torch.eye(8, device="mps"))  # here


@planted("out-of-memory")
def too_large(out):
    torch.empty(1 << 33, device="mps")  # here


@planted("arguments")
def argument(out):
    functional.adaptive_avg_pool2d(torch.ones(1, 1, 7, 7, device="mps"), 3)  # here


def mistakes(report):
    """Return the findings; a bug that this torch has on MPS is none of the script's."""
    return [f for f in report.findings if f.severity != "note" and f.kind != "known-issue"]


def run_loop(body, **options):
    with mpskit.rehearse("m1-8gb", **options) as run:
        model = nn.Linear(64, 64).to("mps")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(9):
            out = model(X.to("mps"))
            body(out)
            out.square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return run.report


@pytest.mark.parametrize("name", CASES)
def test_a_planted_mistake_is_found_at_its_line(name):
    body, kind, severity = CASES[name]
    lines, first = inspect.getsourcelines(body)
    line = first + next(i for i, text in enumerate(lines) if "# here" in text)
    found = mistakes(run_loop(body))
    places = {(one.kind, one.severity, one.line) for one in found}
    assert (kind, severity, line) in places
    assert {one.line for one in found} == {line}
    assert all(one.file.endswith("test_handler.py") for one in found)
    # Once memory is past the limit, nothing more is refused.
    often = None if kind == "out-of-memory" else 1
    assert next(one for one in found if one.kind == kind).per_step == often


def test_clean_code_has_no_finding():
    report = run_loop(lambda out: out.detach())
    assert mistakes(report) == []
    assert report.runs


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("float64_move", TypeError),
        ("mixed", RuntimeError),
        ("missing", NotImplementedError),
        ("too_large", RuntimeError),
        ("numpy_of_mps", TypeError),
    ],
)
def test_strict_stops_with_the_macs_own_error(name, error):
    body = CASES[name][0]
    with pytest.raises(error) as raised:
        run_loop(body, strict=True)
    with mpskit.simulate("m1-8gb"), pytest.raises(error) as real:
        body(X.to("mps"))
    if name != "too_large":
        assert str(raised.value) == str(real.value)


def test_a_fallback_is_slow_and_stops_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = run_loop(CASES["missing"][0], fallback=True)
    (found,) = mistakes(report)
    assert (found.kind, found.severity, found.per_step) == ("fallback", "slow", 1)


def test_float64_goes_on_as_float32():
    with mpskit.rehearse() as run:
        assert torch.ones(600, 600, dtype=torch.float64).to("mps").dtype is torch.float32
    assert run.report.of("stops")
