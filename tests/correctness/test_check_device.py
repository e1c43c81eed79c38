"""Known bugs, tried in processes of their own; a planted one is found, and no other."""

import contextlib
import json
import sys

import pytest
import torch

from mpskit import CheckReport, check_device, simulate
from mpskit.backends import versions
from mpskit.correctness import check_device as module
from mpskit.correctness.accelerator import available_device
from mpskit.correctness.check_device import Outcome, _verdict
from mpskit.correctness.issue_table import issue_table
from mpskit.correctness.reproductions import REPRODUCTIONS, RIGHT, error_of, main
from mpskit.errors import ArgumentError, ArgumentTypeError, DeviceUnavailableError
from mpskit.system.process import Finished

simulated = pytest.mark.needs_torch("simulation")
# Several seconds each, for the sizes at which these bugs show.
SLOW = {
    "linear-bias-large-batch",
    "argsort-many-columns",
    "multinomial-zero-probability",
    "gradients-large-linear",
    "sdpa-grouped-query",
}
LACKS = {"grid-sample-3d-grid": pytest.mark.from_torch("2.9", "MPS has grid_sampler_3d")}


def marked(keys, slow=SLOW):
    """Return each key with its marks: some take long, some need what an older torch lacks."""
    full = dict.fromkeys(slow, pytest.mark.full)
    return [pytest.param(k, marks=[m[k] for m in (full, LACKS) if k in m]) for k in keys]


def test_each_row_is_tried_or_says_why_not():
    table = {issue.key: issue for issue in issue_table()}
    assert set(REPRODUCTIONS) <= set(table)
    assert all((key in REPRODUCTIONS) is (issue.untried is None) for key, issue in table.items())


@simulated
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", marked(REPRODUCTIONS))
def test_a_right_device_is_not_affected(key):
    with torch.random.fork_rng(devices=[]), simulate("m1-16gb", rng="separate"):
        assert main(key, "mps") == RIGHT


# What is planted in the child, in a sitecustomize that a simulated Mac's child runs: an operator,
# its wrong kernel, and which of the tried bugs it is.
PLANTED = {
    "layer-norm-frozen-input": (
        "native_layer_norm_backward",
        (
            "def kernel(g, x, shape, mean, rstd, w, b, mask):\n"
            "    out = right(g, x, shape, mean, rstd, w, b, mask)\n"
            "    return out if mask[0] else (out[0], out[1] * 2, out[2])\n"
        ),
    ),
    "sdpa-causal-half": (
        "_scaled_dot_product_flash_attention_for_cpu",
        (
            "def kernel(q, k, v, p=0.0, causal=False, **more):\n"
            "    wrong = causal and q.dtype is not torch.float32\n"
            "    return right(q, k, v, p, causal and not wrong, **more)\n"
        ),
    ),
    "grid-sample-3d-grid": (
        "grid_sampler_3d",
        (
            "def kernel(x, grid, *rest):\n"
            "    same = torch.empty(grid.shape, device='meta').stride()\n"
            "    return right(x, grid.as_strided(grid.shape, same), *rest)\n"
        ),
    ),
    "scan-above-4d": (
        "cumsum",
        (
            "def kernel(x, dim, **more):\n"
            "    if x.dim() > 4:\n"
            "        import os\n"
            "        os.abort()\n"
            "    return right(x, dim, **more)\n"
        ),
    ),
}
TRIED = [*PLANTED, "item-assignment", "linear-non-contiguous-weight", "embedding-int32"]


def plant(key, monkeypatch, tmp_path):
    operator, kernel = PLANTED[key]
    lines = (
        "import torch\nfrom mpskit.simulation import rules\n"
        f"right = torch.ops.aten.{operator}\n{kernel}"
        "kernel._schema = right.default._schema\n"
        f"rules.KERNELS = {{**rules.KERNELS, 'aten::{operator}': kernel}}\n"
    )
    (tmp_path / "sitecustomize.py").write_text(lines)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


@simulated
@pytest.mark.full  # a process for each known bug that can be tried
@pytest.mark.timeout(900)
@pytest.mark.parametrize("key", ["layer-norm-frozen-input", "scan-above-4d"])
def test_of_all_that_can_be_tried_only_the_planted_one_is_found(key, monkeypatch, tmp_path):
    plant(key, monkeypatch, tmp_path)
    with simulate("m1-16gb"):
        report = check_device()
    assert [check.key for check in report.affected] == [key]
    assert len(report.not_affected) == len(REPRODUCTIONS) - 1
    assert len(report.checks) == len(issue_table())


# A process for each of TRIED: in every run a wrong number and a crash are planted.
@simulated
@pytest.mark.parametrize(
    "key", marked(PLANTED, slow=PLANTED.keys() - {"layer-norm-frozen-input", "scan-above-4d"})
)
def test_a_planted_fault_is_found_and_no_other(key, monkeypatch, tmp_path):
    plant(key, monkeypatch, tmp_path)
    with simulate("m1-16gb"):
        report = check_device(keys=TRIED)
    assert [check.key for check in report.affected] == [key]
    lacking = set(LACKS) if versions.older(torch.__version__, "2.9") else set()
    assert {check.key for check in report.untried} == {"embedding-int32"} | lacking
    assert len(report.not_affected) == len(TRIED) - 2 - len(lacking)
    assert key in str(report)
    assert report.affected[0].workaround in str(report)
    assert CheckReport.model_validate_json(report.model_dump_json()) == report
    assert json.loads(report.model_dump_json())["device"] == "mps"


def test_the_cpu_can_be_checked_too():
    report = check_device("cpu", keys=["item-assignment"])
    assert (report.device, report.affected) == ("cpu", ())
    assert not report.checks[0].listed


@pytest.mark.parametrize(
    ("child", "outcome", "detail"),
    [
        (Finished(0, f"noise\n{RIGHT}\n", ""), Outcome.NOT_AFFECTED, ""),
        (Finished(0, "mpskit-affected 0.5\n", ""), Outcome.AFFECTED, "50%"),
        (Finished(0, "mpskit-affected inf\n", ""), Outcome.AFFECTED, "NaN"),
        (Finished(0, "mpskit-untried TypeError: no float64\n", ""), Outcome.UNTRIED, "TypeError"),
        (Finished(-6, RIGHT, ""), Outcome.AFFECTED, "SIGABRT"),
        (Finished(-9, "", ""), Outcome.UNTRIED, "SIGKILL"),
        (Finished(-99, "", ""), Outcome.UNTRIED, "signal 99"),
        (Finished(1, "", "Traceback\nImportError: torch\n"), Outcome.UNTRIED, "ImportError"),
        (Finished(3, "", ""), Outcome.UNTRIED, "code 3"),
    ],
)
def test_how_a_child_ends(child, outcome, detail):
    found, told = _verdict(child)
    assert found is outcome
    assert detail in told


@pytest.mark.parametrize(
    ("error", "text"),
    [(TimeoutError("long"), "no answer within"), (OSError(11, "Try again"), "Try again")],
)
def test_a_child_that_gives_no_answer(error, text, monkeypatch):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(module, "run_bounded", run)
    (check,) = check_device("cpu", keys=["item-assignment"]).checks
    assert check.outcome is Outcome.UNTRIED
    assert text in check.detail


def test_an_interrupt_starts_no_more(monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_bounded", run)
    monkeypatch.setattr(module, "_TOGETHER", 1)
    with contextlib.suppress(KeyboardInterrupt):
        check_device("cpu")
    assert 0 < len(started) < len(REPRODUCTIONS)


def test_bad_input(monkeypatch):
    with pytest.raises(ArgumentError, match="no known issue 'nothing'"):
        check_device("cpu", keys=["nothing"])
    with pytest.raises(DeviceUnavailableError, match="no 'cuda'"):
        check_device("cuda")
    with pytest.raises(DeviceUnavailableError, match="no 'meta'"):
        available_device("meta")
    with pytest.raises(DeviceUnavailableError, match="mpskit simulate"):
        check_device()
    with pytest.raises(ArgumentTypeError):
        check_device(1)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(DeviceUnavailableError, match="Python"):
        check_device("cpu")


def test_an_operator_that_the_device_lacks_is_untried(monkeypatch):
    def lacking(device):
        raise NotImplementedError(f"not on {device}")

    monkeypatch.setitem(REPRODUCTIONS, "item-assignment", lacking)
    assert main("item-assignment", "cpu") == "mpskit-untried NotImplementedError: not on cpu"


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 1.0], [1.0, 2.0], 0.5),
        ([float("nan")], [1.0], float("inf")),
        ([float("nan")], [float("nan")], 0.0),
        ([1.0], [1.0, 2.0], float("inf")),
        ([0.0], [0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_error_of(got, want, error):
    assert error_of(torch.tensor(got), torch.tensor(want)) == pytest.approx(error)
