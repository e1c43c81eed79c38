"""The plugin's device half, tried on suites of its own."""

import pytest


@pytest.fixture
def suite(run_suite):
    """Run a test file strictly, and list what is skipped."""
    return lambda code, *options, **how: run_suite(code, "-rs", *options, **how)


def test_the_fixtures_give_devices_that_work(suite):
    result = suite(
        """
        import torch

        def test_best(mpskit_device):
            assert isinstance(mpskit_device, torch.device)
            assert torch.ones(2, device=mpskit_device).sum() == 2

        def test_each(mpskit_each_device):
            assert torch.ones(2, device=mpskit_each_device).device.type == mpskit_each_device.type
        """,
        "-v",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_each?cpu?*PASSED*"])


def test_the_header_names_the_device(suite):
    result = suite("def test_nothing(): assert True", fresh=True)
    result.stdout.fnmatch_lines(["mpskit: device cpu expected (torch is not imported yet)"])


def test_the_header_asks_torch_where_it_is_loaded(pytester):
    pytester.makeconftest("import torch")
    pytester.makepyfile("def test_nothing(): assert True")
    result = pytester.runpytest_subprocess()
    result.stdout.fnmatch_lines(["mpskit: device cpu (no accelerator can be used here)"])


def test_a_wrong_variable_stands_in_the_header_and_stops_nothing(suite, monkeypatch):
    monkeypatch.setenv("MPSKIT_DEVICE", "gpu")
    result = suite("def test_nothing(): assert True")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["mpskit: MPSKIT_DEVICE='gpu' is not understood*"])


@pytest.mark.parametrize("device", ["mps", "cuda", "xpu", "accelerator"])
def test_what_is_not_there_is_skipped_with_the_reason(suite, device):
    result = suite(
        f"""
        import pytest

        @pytest.mark.mpskit_requires("{device}")
        def test_it(): assert False
        """
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*needs {device}: *"])


def test_a_wrong_requirement_is_an_error(suite):
    result = suite(
        """
        import pytest

        @pytest.mark.mpskit_requires("gpu")
        def test_it(): pass
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*mpskit_requires takes one of cuda, mps, xpu, accelerator*"])
    result.stdout.no_fnmatch_line("*plugin.py*")


def test_a_suite_that_asks_for_no_device_imports_no_torch(suite):
    result = suite(
        """
        import sys

        def test_it(): assert "torch" not in sys.modules
        """,
        fresh=True,
    )
    result.assert_outcomes(passed=1)


COMBINED = {
    "requires, then machine": ('mpskit_requires("mps")', "mpskit_machine"),
    "machine, then requires": ("mpskit_machine", 'mpskit_requires("mps")'),
    "machine, then accelerator": ("mpskit_machine", 'mpskit_requires("accelerator")'),
}


@pytest.mark.needs_torch("simulation")
@pytest.mark.parametrize("marks", COMBINED.values(), ids=COMBINED.keys())
def test_a_simulated_mac_has_what_a_test_requires(suite, marks):
    result = suite(
        f"""
        import pytest, torch

        @pytest.mark.{marks[0]}
        @pytest.mark.{marks[1]}
        def test_it(): assert torch.ones(1, device="mps").is_mps
        """
    )
    result.assert_outcomes(passed=1)


@pytest.mark.needs_torch("simulation")
def test_requirements_and_machines_in_every_arrangement(suite):
    result = suite(
        """
        import pytest, torch

        needs = pytest.mark.mpskit_requires("mps")

        @needs
        def test_fixture(mpskit_mac): assert torch.ones(1, device="mps").is_mps

        @needs
        def test_device_first(mpskit_device, mpskit_mac): assert mpskit_device.type == "mps"

        @needs
        @pytest.mark.mpskit_machine("intel-mac-16gb")
        def test_not_there(): assert False

        @pytest.mark.mpskit_requires("cuda")
        def test_nor_this(mpskit_mac): assert False

        @needs
        def test_outside(): assert False

        class Both:
            @needs
            def test_it(self): assert torch.ones(1, device="mps").is_mps

        @pytest.mark.mpskit_machine
        class TestMarked(Both): pass

        class TestPlain(Both): pass
        """
    )
    result.assert_outcomes(passed=3, skipped=4)


@pytest.mark.needs_torch("simulation")
def test_each_device_of_each_machine(suite):
    result = suite(
        """
        import pytest

        @pytest.mark.mpskit_machine("m1-8gb", "intel-mac-16gb")
        def test_marked(mpskit_each_device): pass

        def test_fixture(mpskit_each_device, mpskit_mac):
            assert mpskit_mac.machine.name == "m1-8gb"

        @pytest.mark.parametrize("mpskit_mac", ["m2-24gb"], indirect=True)
        def test_parametrised(mpskit_each_device, mpskit_mac): pass

        def test_here(mpskit_each_device): pass
        """,
        "-v",
    )
    result.assert_outcomes(passed=8, skipped=1)
    result.stdout.fnmatch_lines_random(
        [
            "*test_marked?m1-8gb-mps? PASSED*",
            "*test_marked?m1-8gb-cpu? PASSED*",
            "*test_fixture?mps? PASSED*",
            "*test_parametrised?mps-m2-24gb? PASSED*",
            "*test_here?cpu? PASSED*",
        ]
    )
