"""The plugin's simulated machines, tried on suites of their own."""

import sys

import pytest


@pytest.fixture
def suite(run_suite):
    """Run a test file strictly, and name each test."""
    return lambda code, *options, **how: run_suite(code, "-v", *options, **how)


@pytest.mark.needs_torch("simulation")
def test_fixture_and_marker(suite):
    result = suite(
        """
        import pytest, torch
        from mpskit.host import Machine

        def device():
            return torch.ones(1, device="mps").device.type

        def test_default(mpskit_mac):
            assert mpskit_mac.machine.name == "m1-8gb"
            assert device() == "mps"

        @pytest.mark.parametrize("mpskit_mac", ["m2-24gb", {"machine": "m1-8gb", "macos": "14.5"}], indirect=True)
        def test_parametrised(mpskit_mac):
            assert (mpskit_mac.machine.ram_gib, mpskit_mac.machine.macos) in [(24, "15.6"), (8, "14.5")]

        @pytest.mark.mpskit_machine("m1-8gb", Machine(chip="M9", ram_gib=10), rng="separate")
        def test_marked():
            assert device() == "mps"

        @pytest.mark.mpskit_machine
        class TestClass:
            def test_in_class(self, mpskit_mac):
                assert mpskit_mac.machine.name == "m1-8gb"

            @pytest.mark.mpskit_machine("m4-pro-24gb")
            def test_the_closest_mark_wins(self, mpskit_mac):
                assert mpskit_mac.machine.name == "m4-pro-24gb"

        @pytest.fixture
        def tensor():
            return torch.ones(1).to("mps")

        @pytest.mark.mpskit_machine
        def test_other_fixtures_are_on_the_machine(tensor):
            assert tensor.is_mps

        def test_afterwards():
            assert not torch.backends.mps.is_available()
        """
    )
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["*test_marked?m1-8gb?*PASSED*", "*test_marked?M9 with 10 GiB*"])


SESSION = """
    import pytest, torch, mpskit
    BEFORE = torch.ones(1, device="mps")

    def test_inside():
        assert BEFORE.is_mps and mpskit.detect_host().memory_total_bytes == 8 * 2**30

    def test_same(mpskit_mac):
        assert mpskit_mac.machine.name == "m1-8gb"

    @pytest.mark.mpskit_machine("m3-max-64gb")
    def test_another():
        assert mpskit.detect_host().memory_total_bytes == 64 * 2**30

    def test_back():
        assert torch.ones(1, device="mps").is_mps
        assert mpskit.detect_host().memory_total_bytes == 8 * 2**30
"""


@pytest.mark.needs_torch("simulation")
def test_a_whole_suite_on_one_machine(suite):
    result = suite(SESSION, "--mpskit-machine", "macbook-air-m1-8gb")
    result.assert_outcomes(passed=4)


@pytest.mark.needs_torch("simulation")
def test_a_whole_suite_with_xdist(suite):
    result = suite(SESSION, "--mpskit-machine", "m1-8gb", "-n", "1")
    result.assert_outcomes(passed=4)


@pytest.mark.needs_torch("simulation")
def test_a_strict_suite_by_the_command_line(pytester):
    pytester.makepyfile("def test_it(mpskit_mac): assert mpskit_mac.machine.name == 'm2-8gb'")
    words = ("simulate", "m2-8gb", "--", "-m", "pytest", "-W", "error", "-p", "no:cacheprovider")
    result = pytester.run(sys.executable, "-m", "mpskit", *words)
    result.assert_outcomes(passed=1)


@pytest.mark.needs_torch("simulation")
def test_an_unknown_machine_is_a_usage_error(suite):
    result = suite("def test_it(): pass", "--mpskit-machine", "m1-9gb")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no machine is called 'm1-9gb'*"])


@pytest.mark.needs_torch("simulation")
def test_markers_fail_a_test_that_passed(suite):
    result = suite(
        """
        import pytest, torch

        machine = pytest.mark.mpskit_machine("m1-8gb", fallback=True)

        @machine
        @pytest.mark.mpskit_no_cpu_fallback
        @pytest.mark.filterwarnings("ignore:The operator")
        def test_falls_back():
            torch.ones(3, device="mps").mode()

        @machine
        @pytest.mark.mpskit_no_cpu_fallback
        def test_does_not_fall_back():
            torch.ones(3, device="mps").sort()

        @machine
        @pytest.mark.mpskit_max_memory("1MiB")
        def test_too_much():
            torch.zeros(1024, 1024, device="mps")

        @machine
        @pytest.mark.mpskit_max_memory("4MiB")
        def test_just_enough():
            torch.zeros(1024, 1024, device="mps")

        @pytest.mark.mpskit_max_memory("lots")
        def test_wrong_size():
            pass

        @pytest.mark.mpskit_max_memory("1MiB")
        @pytest.mark.mpskit_no_cpu_fallback
        def test_off_the_machine():
            torch.zeros(1024, 1024)
        """
    )
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*MPS has no kernel for aten::mode: it ran on the CPU*",
            "*the tensors took 4.00 MiB at once, more than the 1.00 MiB of mpskit_max_memory*",
            "*'lots' is not a size*",
        ]
    )


ODD = '''
import functools, sys, types
from unittest import mock
from unittest.mock import call, sentinel, ANY

import pytest

class Answers:
    """An object that has every attribute."""
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
    def __iter__(self): return iter((self,))
    def __bool__(self): raise RuntimeError("no truth value")
    def __eq__(self, other): raise RuntimeError("cannot be compared")
    __hash__ = None

class Raises:
    __test__ = False
    def __call__(self): pass
    def __getattr__(self, name): raise AttributeError(name)
    @property
    def pytestmark(self): raise RuntimeError("asked for its marks")

class Lazy:
    def __call__(self): pass
    @property
    def __class__(self): raise RuntimeError("not loaded")

class Meta(type):
    def __getattr__(cls, name): raise RuntimeError(name)

class WithMeta(metaclass=Meta): pass

answers, raises, with_meta = Answers(), Raises(), WithMeta()
magic, plain, sealed = mock.MagicMock(), mock.Mock(), mock.create_autospec(Answers)
everything = types.SimpleNamespace(pytestmark=ANY)
marked_call = call.pytestmark
partial = functools.partial(print)
number, text, empty = 1, "text", None
def not_marks(): pass
not_marks.pytestmark = call
def no_list(): pass
no_list.pytestmark = answers

@mock.patch("sys.argv", [])
def test_patched(): pass

@functools.lru_cache
def cached(): pass

def test_plain(): assert call(1) == call(1)
'''


def test_odd_objects_in_a_module_are_collected_as_without_the_plugin(suite):
    suite(ODD, "-p", "no:cacheprovider").assert_outcomes(passed=2)


@pytest.mark.needs_torch("simulation")
def test_only_the_marked_heir_is_on_the_machine(suite):
    result = suite(
        """
        import pytest, torch

        class Base:
            def test_it(self): assert torch.backends.mps.is_available() == self.expected

        @pytest.mark.mpskit_machine
        class TestMac(Base): expected = True

        class TestPlain(Base): expected = False
        """
    )
    result.assert_outcomes(passed=2)


def test_on_an_older_torch_the_fixture_names_the_version(suite):
    result = suite(
        """
        import pytest
        from mpskit.backends import versions

        @pytest.fixture
        def older(monkeypatch):
            monkeypatch.setattr(versions, "torch_version", lambda: "2.5.1")

        def test_it(older, mpskit_mac): pass
        def test_no_machine(older):
            from mpskit import simulation
            simulation.active()
        """,
        fresh=True,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*a simulated machine needs torch 2.6 or newer; 2.5.1 is installed*"]
    )
