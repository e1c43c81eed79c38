"""The GPU's utilization from ioreg's output: any bytes, and no Mac."""

import sys

import pytest

from mpskit.system import gpu
from mpskit.system.gpu import gpu_percent, gpu_percent_in


def plist(body):
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">{body}</plist>""".encode()


def accelerator(share):
    statistics = f"<key>Device Utilization %</key><integer>{share}</integer>"
    return f"<dict><key>PerformanceStatistics</key><dict>{statistics}</dict></dict>"


@pytest.mark.parametrize(
    ("output", "share"),
    [
        (plist(f"<array>{accelerator(37)}</array>"), 37.0),
        (plist(f"<array>{accelerator(3)}{accelerator(90)}</array>"), 90.0),
        (plist(f"<array>{accelerator(250)}</array>"), 100.0),
        (plist(f"<array>{accelerator(-3)}</array>"), 0.0),
        (plist(f"<array>{accelerator('9' * 400)}</array>"), 100.0),
        (plist(f"<array>{accelerator('9' * 5000)}</array>"), None),
        (plist(f"<array>{accelerator(7).replace('integer', 'real')}</array>"), 7.0),
        (plist(f"<array>{accelerator('nan').replace('integer', 'real')}</array>"), None),
        (plist("<array><dict/></array></dict>"), None),
        (plist("<adict><key>P</key></adict></array>"), None),
        (plist("<array>" * 10_000), None),
        (plist("<array><dict/></array>"), None),
        (plist("<array><string>x</string></array>"), None),
        (plist("<array/>"), None),
        (plist("<dict/>"), None),
        (plist("<array>"), None),
        (b"", None),
        (b"\x00\xff", None),
        (b"bplist00garbage", None),
    ],
    ids=range(19),
)
def test_the_gpus_share_within_ioregs_output(output, share):
    assert gpu_percent_in(output) == share


def test_there_is_no_share_elsewhere_than_on_a_mac():
    assert sys.platform == "darwin" or gpu_percent() is None


def test_on_a_mac_ioreg_is_asked(monkeypatch):
    def output_of(command, *, seconds):
        assert command == gpu.GPU_COMMAND
        assert seconds <= 2
        return plist(f"<array>{accelerator(64)}</array>").decode()

    monkeypatch.setattr(gpu.sys, "platform", "darwin")
    monkeypatch.setattr(gpu, "output_of", output_of)
    assert gpu_percent() == 64.0


def test_an_ioreg_that_hangs_or_is_absent_has_no_share(monkeypatch):
    monkeypatch.setattr(gpu.sys, "platform", "darwin")
    monkeypatch.setattr(gpu, "output_of", lambda *_, **__: None)
    assert gpu_percent() is None
