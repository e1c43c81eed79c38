"""The impure file, asked on whatever machine runs the tests."""

import platform
import subprocess
import sys
import threading

import pytest

from mpskit.host import Readings
from mpskit.system import machine as module

# Only a hang takes so long: no test measures how fast a busy machine is.
LONG = 120.0


def test_the_machine_answers():
    found = module.read_readings()
    assert found.system == platform.system()
    assert found.machine == platform.machine()
    assert found.memory_total > found.memory_available > 0
    assert found.logical_cpus >= 1
    assert found.python_version == platform.python_version().rstrip("+")
    assert found.swap_total >= found.swap_used >= 0


def test_a_reading_that_fails_is_none(monkeypatch):
    def fail():
        raise OSError("no such thing here")

    monkeypatch.setitem(module._READERS, "machine", fail)
    found = module.read_readings()
    assert found.machine is None
    assert found.system == platform.system()


def test_a_reading_that_hangs_is_none(monkeypatch):
    released = threading.Event()
    monkeypatch.setitem(module._READERS, "machine", released.wait)
    monkeypatch.setattr(module, "TIME_LIMIT_S", 0.05)
    found = []
    asking = threading.Thread(target=lambda: found.append(module.read_readings()), daemon=True)
    asking.start()
    asking.join(LONG)
    released.set()
    assert found[0].machine is None


def test_where_no_thread_can_be_started_this_one_reads(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    found = module.read_readings()
    assert (found.system, found.python_version) == (
        platform.system(),
        platform.python_version().rstrip("+"),
    )


def test_a_system_without_a_name_is_read_all_the_same(monkeypatch):
    def fail():
        raise OSError

    monkeypatch.setattr(platform, "system", fail)
    assert module.read_readings().memory_total > 0


def test_replaced_readings_hold_in_every_thread():
    other = Readings(system="Darwin", machine="arm64", power={"live": "lowpowermode 1"})
    previous = module.replace_readings(other)
    try:
        seen = []
        thread = threading.Thread(target=lambda: seen.append(module.read_readings()))
        thread.start()
        thread.join()
        assert seen == [other]
        assert module.replaced_readings() is other
    finally:
        assert module.replace_readings(previous) is other
    assert module.read_readings() != other


def test_only_variables_that_name_nobody(monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("RUNNER_NAME", "anne's mini")
    environ = module.read_readings().environ
    assert environ["GITHUB_ACTIONS"] == "true"
    assert "RUNNER_NAME" not in environ


def test_a_mac_is_asked_in_the_mac_way(monkeypatch):
    """Every Mac reader fails here without raising: there is no sysctl to call."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "Popen", no_program)
    found = module.read_readings()
    assert found.memory_total > 0
    assert found.product_version is None
    assert not found.sysctl
    assert found.metal_device is None


def no_program(*_, **__):
    raise FileNotFoundError


def test_importing_it_imports_neither_torch_nor_psutil():
    code = "import sys, mpskit.host as h; h.detect_host(); print({'torch', 'psutil'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = "set()" if platform.system() == "Linux" else "{'psutil'}"
    assert done.stdout.strip() == expected


@pytest.mark.skipif(platform.system() != "Darwin", reason="reads a Mac's own kernel")
def test_a_real_mac():
    found = module.read_readings()
    assert found.sysctl["hw.memsize"] == str(found.memory_total)
    assert found.product_version


CPUINFO = """processor\t: 0
model name\t: AMD EPYC
physical id\t: 0
core id\t\t: 0

processor\t: 1
model name\t: AMD EPYC
physical id\t: 0
core id\t\t: 0

processor\t: 2
physical id\t: 1
core id\t\t: 0
"""


def test_cpuinfo():
    assert module.cpu_brand(CPUINFO) == "AMD EPYC"
    assert module.physical_cores(CPUINFO) == 2
    assert module.cpu_brand("Model\t\t: Raspberry Pi 5") == "Raspberry Pi 5"
    assert module.cpu_brand("") is None
    assert module.cpu_brand("model name :\nstepping : 3\n") is None
    assert module.cpu_brand("model name\t:\t \nHardware : BCM2835\n") == "BCM2835"
    assert module.physical_cores("") is None


def test_what_linux_lists_of_its_processor(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    (tmp_path / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemAvailable: 400 kB\nSwapTotal: 30 kB\nSwapFree: 10 kB\nEmpty:\n"
    )
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    found = module.read_readings()
    assert (found.cpu_brand, found.physical_cpus) == ("AMD EPYC", 2)
    assert (found.memory_total, found.memory_available) == (1000 * 1024, 400 * 1024)
    assert (found.swap_total, found.swap_used) == (30 * 1024, 20 * 1024)


def test_threads_of_a_core_are_not_counted_as_cores(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8 if logical else 4)
    assert module._physical_cpus() == 4
