"""The plugin's device half, tried on suites of its own."""

import pytest


@pytest.fixture
def suite(pytester):
    """Run a test file in a fresh process, strictly."""

    def run(code, *options):
        pytester.makepyfile(code)
        return pytester.runpytest_subprocess("--strict-markers", "-W", "error", "-rs", *options)

    return run


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
    result = suite("def test_nothing(): assert True")
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


def test_a_suite_that_asks_for_no_device_imports_no_torch(suite):
    result = suite(
        """
        import sys

        def test_it(): assert "torch" not in sys.modules
        """
    )
    result.assert_outcomes(passed=1)
