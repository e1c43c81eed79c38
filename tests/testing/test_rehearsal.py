"""The marker mpskit_rehearse, tried on suites of their own."""

import pytest
import torch

from mpskit.backends.versions import has

pytestmark = pytest.mark.needs_torch("simulation")

MODEL = """
import pytest, torch
from torch import nn

@pytest.fixture
def model():
    made = nn.Linear(64, 64).to("mps")
    yield made
    torch.mps.empty_cache()

def train(model, body=lambda out: None, steps=9):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        out = model(torch.ones(8, 64, device="mps"))
        body(out)
        out.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
"""


@pytest.fixture
def suite(run_suite):
    """Run tests over a small model strictly."""

    def run(code, *options, **how):
        lines = code.splitlines()
        margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        return run_suite(MODEL + "\n".join(line[margin:] for line in lines), "-v", *options, **how)

    return run


def test_a_test_that_passes_ends_with_its_rehearsal(suite):
    result = suite(
        """
        @pytest.mark.mpskit_rehearse
        def test_ends_after_three_steps(model):
            train(model)
            raise AssertionError("not reached")

        @pytest.mark.mpskit_rehearse("m1-8gb", "m3-max-64gb", steps=None)
        def test_whole(model, mpskit_device, tmp_path):
            assert mpskit_device.type == "mps"
            train(model)
            (tmp_path / "file").write_text("x")
            assert (tmp_path / "file").read_text() == "x"

        @pytest.mark.mpskit_rehearse
        class TestClass:
            def test_in_it(self, model):
                train(model)
                raise AssertionError("not reached")

            @pytest.mark.mpskit_rehearse("m1-16gb", steps=9)
            def test_the_closest_mark_wins(self, model):
                train(model)
                raise AssertionError("not reached")

        @pytest.mark.mpskit_rehearse
        @pytest.mark.mpskit_requires("mps")
        def test_each(mpskit_each_device):
            assert mpskit_each_device.type in {"mps", "cpu"}

        def test_unmarked():
            assert not torch.backends.mps.is_available()
        """
    )
    result.assert_outcomes(passed=7)


def test_what_fails_a_test(suite):
    result = suite(
        """
        rehearse = pytest.mark.mpskit_rehearse

        @rehearse("m1-8gb", "m3-max-64gb")
        def test_too_large():
            torch.empty(1 << 32, device="mps")

        @rehearse
        def test_stops(model):
            train(model, lambda out: out.double())

        @rehearse
        def test_slow_is_fine(model):
            train(model, lambda out: out.sum().item())

        @rehearse(severity="slow")
        def test_slow(model):
            train(model, lambda out: out.sum().item())

        @rehearse(strict=True)
        def test_strict(model):
            train(model, lambda out: out.double())

        @rehearse
        def test_its_own_failure(model):
            assert model is None, "its own"
        """
    )
    result.assert_outcomes(passed=1, failed=5)
    result.stdout.fnmatch_lines(
        [
            "*mpskit_rehearse:",
            "*m1-8gb: does not fit: peak 16.00 GiB live*",
            "*stops: *test_what_fails_a_test.py:*float64*-> convert to float32 first*",
            "*slow: *test_what_fails_a_test.py:*",
            "*its own*",
        ]
    )


def test_with_the_other_markers(suite):
    result = suite(
        """
        rehearse = pytest.mark.mpskit_rehearse

        @rehearse
        @pytest.mark.mpskit_max_memory("10KiB")
        def test_limit(model):
            train(model)

        @rehearse(fallback=True)
        @pytest.mark.mpskit_no_cpu_fallback
        @pytest.mark.filterwarnings("ignore:The operator")
        def test_fallback(model):
            train(model, lambda out: torch.linalg.eigvals(torch.eye(8, device="mps")))

        @rehearse
        @pytest.mark.mpskit_machine("m1-8gb")
        def test_two_machines(): pass

        @rehearse
        def test_the_fixture(mpskit_mac): pass

        @rehearse("m1-9gb")
        def test_unknown(): pass

        @rehearse(severity="bad")
        def test_severity(): pass

        @rehearse(step=3)
        def test_option(): pass

        @rehearse
        @pytest.mark.mpskit_requires("cuda")
        def test_needs_cuda(): pass

        import unittest

        @rehearse
        class TestCase(unittest.TestCase):
            def test_it(self): pass
        """
    )
    result.assert_outcomes(failed=3, errors=5, skipped=1)
    # Two tensors of at most 256 bytes get cached buffers of 2 KiB; 2.14 splits such a buffer.
    peak = "39.00" if has("mps.placement_heaps", torch.__version__) else "42.50"
    result.stdout.fnmatch_lines_random(
        [
            f"*the tensors took {peak} KiB at once, more than the 10.00 KiB*",
            "*MPS has no kernel for aten::_linalg_eigvals*",
            "*mpskit_rehearse brings its own machine*",
            "*no machine is called 'm1-9gb'*",
            "*severity='bad' is not one of 'stops', 'wrong', 'slow', 'note'*",
            "*mpskit_rehearse marks functions and plain classes only*",
        ]
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="alone"),
        # Two processes; in every run, a suite on a machine without rehearsals has them.
        pytest.param(("-n", "1"), id="xdist", marks=pytest.mark.full),
    ],
)
def test_on_a_suite_that_has_a_machine(suite, options):
    result = suite(
        """
        import mpskit

        def memory():
            return mpskit.detect_host().memory_total_bytes

        @pytest.mark.mpskit_rehearse("m3-max-64gb")
        def test_another(model):
            assert memory() == 64 * 2**30
            train(model)

        def test_back():
            assert memory() == 8 * 2**30
            assert torch.ones(2, device="mps").sum().item() == 2
        """,
        "--mpskit-machine",
        "m1-8gb",
        *options,
    )
    result.assert_outcomes(passed=2)
