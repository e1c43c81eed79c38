"""Which operators MPS has: the yaml, the table of corrections, and limits by argument."""

import importlib.machinery
import importlib.util
import itertools
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpskit import simulate
from mpskit.simulation import argument_limits as limits
from mpskit.simulation import coverage, yaml_index
from mpskit.simulation.coverage import Coverage, Status
from mpskit.simulation.yaml_index import Index, Kind, parse

aten = torch.ops.aten
NOW = Coverage(torch.__version__, "15.6")

YAML = """
- func: add.out(Tensor self, Tensor other, *, Tensor(a!) out) -> Tensor(a!)
  structured: True
  dispatch:
    SparseCPU: add_out_sparse_cpu
    CPU, CUDA, MPS: add_out  # a comment
- func: add.Tensor(Tensor self, Tensor other) -> Tensor
  structured_delegate: add.out
- func: mode(Tensor self, int dim=-1) -> (Tensor values, Tensor indices)
  dispatch:
    CPU, CUDA: mode
- func: mode.values(Tensor self, *, Tensor(a!) values) -> Tensor(a!)
  dispatch:
    CompositeExplicitAutograd: mode_out
- func: frexp.Tensor(Tensor self) -> (Tensor mantissa, Tensor exponent)
  dispatch:
    CompositeExplicitAutograd: frexp
- func: frexp.Tensor_out(Tensor self, *, Tensor(a!) mantissa) -> Tensor(a!)
  dispatch:
    CPU, CUDA: frexp_out
- func: put(Tensor self, Tensor index, Tensor source) -> Tensor
  dispatch:
    CompositeExplicitAutograd: put
- func: put_(Tensor(a!) self, Tensor index, Tensor source) -> Tensor(a!)
  dispatch:
    CPU, CUDA: put_
- func: eig.out(Tensor self, *, Tensor(a!) out) -> Tensor(a!)
  structured: True
  dispatch:
    CPU, CUDA: eig_out
- func: eig(Tensor self) -> Tensor
  structured_delegate: eig.out
- func: square(Tensor self) -> Tensor
- func: ones_like(Tensor self) -> Tensor
  dispatch:
    # a comment
    CompositeExplicitAutograd, CompositeImplicitAutogradNestedTensor: ones_like
  autogen: ones_like.out
- func: _pdist(Tensor self) -> Tensor
  dispatch:
    CPU, CUDA: _pdist
  autogen: _pdist.out
- func: _coalesce(Tensor self) -> Tensor
  dispatch:
    SparseCPU, SparseCUDA, SparseMPS: _coalesce
"""
SMALL = Index(parse(YAML.splitlines()))


@pytest.mark.parametrize(
    ("name", "kind", "missing"),
    [
        ("add.out", Kind.NATIVE, None),
        ("add.Tensor", Kind.NATIVE, None),
        ("mode", Kind.MISSING, "mode"),
        ("mode.values", Kind.EXPLICIT, "mode"),
        ("frexp.Tensor", Kind.EXPLICIT, "frexp.Tensor_out"),
        ("put", Kind.EXPLICIT, "put_"),
        ("eig", Kind.MISSING, "eig.out"),
        ("square", Kind.IMPLICIT, None),
        ("ones_like", Kind.EXPLICIT, None),
        ("ones_like.out", Kind.EXPLICIT, None),
        ("_pdist.out", Kind.MISSING, "_pdist.out"),
        ("_coalesce", Kind.NATIVE, None),
    ],
)
def test_yaml(name, kind, missing):
    assert SMALL.kinds[name] is kind
    assert SMALL.missing_name(name) == missing


@given(st.text(max_size=400))
def test_yaml_of_any_text(text):
    assert set(Index(parse(text.splitlines())).kinds.values()) <= set(Kind)


@given(st.integers(min_value=0, max_value=len(YAML)))
def test_yaml_cut_anywhere(cut):
    """The last name may be cut short; nothing else appears that the whole does not have."""
    kinds = Index(parse(YAML[:cut].splitlines())).kinds
    assert all(any(whole.startswith(name) for whole in SMALL.kinds) for name in kinds)


def test_installed_yaml_agrees_with_torchs_own_reader():
    """Compare every ``dispatch`` key with what pyyaml reads, where it is installed."""
    if importlib.util.find_spec("yaml") is None:
        pytest.skip("pyyaml is not installed")
    yaml = importlib.import_module("yaml")
    path = yaml_index._yaml_path()
    assert path is not None
    rows = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)
    read = parse(path.read_text("utf-8").splitlines())
    assert len(read) == len(rows)
    for row in rows:
        entry = read[row["func"].partition("(")[0]]
        keys = itertools.chain.from_iterable(k.split(",") for k in row.get("dispatch", {}))
        assert set(entry.keys) == {key.strip() for key in keys}
        assert entry.delegate == row.get("structured_delegate", "")


@pytest.mark.parametrize(
    ("op", "status"),
    [
        (aten.mm.default, Status.NATIVE),
        (aten.add_.Tensor, Status.NATIVE),
        (aten._softmax.default, Status.NATIVE),
        (aten.linear.default, Status.NATIVE),
        (aten.ones_like.default, Status.COMPOSITE),
        (aten.matmul.default, Status.COMPOSITE),
        (aten._scaled_dot_product_flash_attention_for_cpu.default, Status.STANDIN),
        (aten.mkldnn_rnn_layer.default, Status.STANDIN),
        (aten.embedding_renorm_.default, Status.ALWAYS_CPU),
        (aten.linalg_eig.default, Status.MISSING),
        (aten._pdist_forward.default, Status.MISSING),
        (aten.channel_shuffle.default, Status.MISSING),
    ],
)
def test_status(op, status):
    assert NOW.status(op) is status
    assert NOW.status(op) is status


def test_python_registration_counts():
    """As of torch/_refs/linalg, where linalg_lu_solve gets its MPS kernel in some versions."""
    with torch.library._scoped_library("mpskit_registered", "DEF") as library:
        library.define("on_mps(Tensor x) -> Tensor")
        library.impl("on_mps", lambda x: x + 1, "CPU")
        library.impl("on_mps", lambda x: x + 1, "MPS")
        assert NOW.status(torch.ops.mpskit_registered.on_mps.default) is Status.NATIVE


def test_group_norm_has_kernels_before_the_yaml_tells():
    """torch/backends/mps/__init__.py registers both in Python, on a Mac only, until 2.13."""
    lines = [
        "- func: native_group_norm_backward(Tensor grad_out) -> Tensor",
        "  dispatch:",
        "    CPU, CUDA: native_group_norm_backward",
    ]
    index = yaml_index.Index(parse(lines))
    op = aten.native_group_norm_backward.default
    assert Coverage("2.9.1", "15.6", index=index).status(op) is Status.NATIVE
    assert Coverage("2.13.0", "15.6", index=index).status(op) is Status.MISSING


SPARSE = """\
- func: _indices(Tensor(a) self) -> Tensor(a)
  variants: method
  dispatch:
    SparseCPU, {backend}SparseMeta: _indices_sparse
"""


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_need_a_backend_of_their_own(layout):
    backend = "SparseMPS" if layout is torch.sparse_coo else "SparseCsrMPS"
    without, with_it = (
        Coverage("2.13.0", "15.6", index=yaml_index.Index(parse(text.splitlines())))
        for text in (SPARSE.format(backend=""), SPARSE.format(backend=f"{backend}, "))
    )
    for _ in range(2):
        without.check_layout(torch.strided)
        with_it.check_layout(layout)
        with pytest.raises(
            NotImplementedError, match=f"'aten::_x' .* from the '{backend}' backend"
        ):
            without.check_layout(layout, "_x")


def test_custom_operators():
    with torch.library._scoped_library("mpskit_try", "DEF") as library:
        library.define("only_cpu(Tensor x) -> Tensor")
        library.define("anywhere(Tensor x) -> Tensor")
        library.impl("only_cpu", lambda x: x + 1, "CPU")
        library.impl("anywhere", lambda x: x + 1, "CompositeExplicitAutograd")
        ops = torch.ops.mpskit_try
        assert NOW.status(ops.only_cpu.default) is Status.MISSING
        assert NOW.status(ops.anywhere.default) is Status.COMPOSITE
        assert "'mpskit_try::only_cpu'" in str(NOW.missing_error(ops.only_cpu.default))


def test_fallback_names_the_operator_that_fell_back():
    coverage = Coverage("2.13.0", "15.6")
    text = coverage.fallback_warning(aten._linalg_svd.default)
    assert text.startswith("The operator 'aten::linalg_svd' is not currently supported")


@pytest.mark.parametrize("fallback", [False, True])
def test_what_a_kernel_calls_inside(fallback):
    call = (aten.linalg_pinv.atol_rtol_tensor, (torch.eye(2),), {"hermitian": True})
    text = "- func: _linalg_eigh.eigenvalues(Tensor A)\n  dispatch:\n    CPU, CUDA: eigh"
    index = Index(parse(text.splitlines()))
    coverage = Coverage("2.13.0", "15.6", fallback=fallback, index=index)
    if fallback:
        coverage.check(*call)
        return
    with pytest.raises(NotImplementedError, match=r"aten::_linalg_eigh\.eigenvalues"):
        coverage.check(*call)
    coverage.check(call[0], call[1], {"hermitian": False})


@pytest.mark.parametrize("fallback", [False, True])
def test_collectives_are_refused_since_2_11_and_barriers_are_not(fallback):
    op, barrier = torch.ops.c10d.allreduce_.default, torch.ops.c10d.barrier.default
    new = Coverage("2.11.0", "15.6", fallback=fallback)
    assert {new.status(op), new.status(barrier)} == {Status.NATIVE}
    with pytest.raises(NotImplementedError, match="distributed operator 'c10d::allreduce_'"):
        new.check(op, ([torch.ones(2)],), {})
    assert new.check_for(barrier) is None
    assert Coverage("2.10.0", "15.6").status(op) is Status.MISSING


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (aten.linalg_eig.default, "aten::linalg_eig"),
        (aten.linalg_ldl_factor_ex.default, "aten::linalg_ldl_factor_ex.out"),
        (aten.channel_shuffle.default, "aten::channel_shuffle"),
    ],
)
def test_the_error_names_the_kernel_that_is_missing(op, name):
    error = NOW.missing_error(op)
    assert isinstance(error, NotImplementedError)
    assert str(error).startswith(f"The operator '{name}' is not currently implemented")
    assert NOW.fallback_warning(op).startswith(f"The operator '{name}' is not currently supported")


def image(*shape):
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize(
    ("size", "target", "text"),
    [
        ((8, 8), (4, 4), None),
        ((4, 4), (8, 8), None),
        ((8, 8), (1, 1), None),
        ((7, 7), (3, 3), "input sizes must be divisible by output sizes"),
        ((3, 3), (7, 7), "output sizes must be divisible by input sizes"),
        ((8, 2), (4, 4), "must both be greater than"),
    ],
)
def test_adaptive_average_pools(size, target, text):
    source = image(1, 2, *size)
    gradient = image(1, 2, *target)
    calls = [
        (aten._adaptive_avg_pool2d.default, (source, list(target))),
        (aten._adaptive_avg_pool2d_backward.default, (gradient, source)),
    ]
    for op, args in calls:
        if text is None:
            NOW.check(op, args, {})
        else:
            with pytest.raises(NotImplementedError, match=text):
                NOW.check(op, args, {})


def test_adaptive_maximum_pools_until_2_14():
    call = (aten.adaptive_max_pool2d.default, (image(1, 1, 8, 2), [4, 4]), {})
    with pytest.raises(NotImplementedError, match="must both be greater"):
        Coverage("2.13.0", "15.6").check(*call)
    Coverage("2.14.1", "15.6").check(*call)
    Coverage("2.13.0", "15.6").check(call[0], (image(1, 1, 7, 7), [3, 3]), {})


def convolution(source, weight, *, transposed=False, stride=1):
    n = source.dim() - 2
    tail = ([stride] * n, [0] * n, [1] * n, transposed, [0] * n, 1)
    return (aten.convolution.default, (source, weight, None, *tail), {})


@pytest.mark.parametrize(
    ("macos", "long", "kernel", "refused"),
    [
        ("15.0", 65_537, 1, True),
        ("15.0", 65_536, 1, False),
        ("15.0", 65_538, 3, False),
        ("14.5", 70_000, 3, True),
        ("15.1", 70_000, 3, False),
        ("26.0", 70_000, 3, False),
    ],
)
def test_long_convolutions_before_macos_15_1(macos, long, kernel, refused):
    call = convolution(image(1, 2, 1, long), image(3, 2, 1, kernel))
    if refused:
        with pytest.raises(NotImplementedError, match="Output channels > 65536"):
            Coverage("2.13.0", macos).check(*call)
    else:
        Coverage("2.13.0", macos).check(*call)


def test_integer_and_half_convolutions():
    ints = convolution(image(1, 2, 4, 4).to(torch.int64), image(3, 2, 1, 1).to(torch.int64))
    with pytest.raises(RuntimeError, match="only for Floating types"):
        NOW.check(*ints)
    half = convolution(image(1, 2, 4, 4, 4).half(), image(2, 3, 1, 1, 1).half(), transposed=True)
    with pytest.raises(RuntimeError, match="ConvTranspose 3D with BF16 or FP16"):
        Coverage("2.8.0", "15.6").check(*half)
    NOW.check(*convolution(image(1, 2, 4, 4).half(), image(2, 3, 1, 1).half(), transposed=True))


def test_limits_come_and_go_with_torch():
    half = convolution(image(1, 2, 4, 4, 4).half(), image(2, 3, 1, 1, 1).half(), transposed=True)
    Coverage("2.7.1", "15.6").check(*half)
    svd = "linalg_svd"
    assert coverage.table_for("2.13.0", "15.6").status[svd] == "always_cpu"
    assert svd not in coverage.table_for("2.14.1", "15.6").status


@pytest.mark.parametrize(
    ("func", "version", "dtype"),
    [
        (torch.quantile, "2.14.1", torch.float32),
        (torch.nanquantile, "2.15.0", torch.float32),
        (torch.quantile, "2.13.0", torch.float64),
        (torch.float_power, "2.14.1", torch.float64),
    ],
)
def test_ranks_of_quantile_are_float32_on_mps(func, version, dtype):
    """From 2.14 its C++ takes float64 anywhere else; a user's own float64 stays refused."""
    kwargs = {"dtype": torch.float64}

    def __torch_function__(func):
        Coverage(version, "15.6").check(aten._to_copy.default, (torch.ones(2),), kwargs)

    __torch_function__(func)
    assert kwargs["dtype"] is dtype


def test_every_row_cites_a_source_and_names_operators_that_exist():
    text = resources.files("mpskit").joinpath("data", "mps_coverage.toml").read_text("utf-8")
    table = tomllib.loads(text)
    assert set(table) == {"status", "calls", "limit", "narrowed"}
    known = yaml_index.installed_index().kinds
    for row in itertools.chain.from_iterable(table.values()):
        assert len(row["source"]) > 5
        names = row.get("ops", []) + [row[key] for key in ("op", "inner") if key in row]
        unknown = {name for name in names if "::" not in name and name not in known}
        assert not unknown or "until" in row, unknown
    assert {row["rule"] for row in table["limit"]} == set(limits.RULES)
    assert {row["status"] for row in table["status"]} <= {status.value for status in Status}


def test_the_library_does_not_know_the_yardstick():
    package = Path(str(resources.files("mpskit")))
    words = ("XFAILLIST", "common_mps", "mps_ops_modifier")
    for path in itertools.chain(package.rglob("*.py"), package.rglob("*.toml")):
        assert not any(word in path.read_text("utf-8") for word in words), path


def fidelity():
    path = Path(__file__).parents[2] / "benchmarks" / "fidelity.py"
    spec = importlib.util.spec_from_file_location("mpskit_fidelity", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


held = pytest.mark.from_torch("2.13", "agreement with the list that torch ships is held")


@held
@pytest.mark.filterwarnings("ignore")
def test_fidelity_of_every_tenth_operator():
    """At least 99% at float32, and no disagreement without an explanation."""
    from torch.testing._internal.common_methods_invocations import op_db

    benchmark = fidelity()
    expected = benchmark.yardstick()
    infos = [info for info in op_db if torch.float32 in info.supported_dtypes("cpu")][::10]
    cases = []
    with simulate(benchmark.MACHINE):
        for info in infos:
            key = info.name + info.variant_test_name
            refused, done, error = benchmark.run_case(info, torch.float32, 30)
            listed = key in expected and (expected[key] is None or "float32" in expected[key])
            cases.append(benchmark.Case(key, "float32", refused, listed, done, error))
    odd = [case for case in cases if case.kind != "agreement"]
    assert len(cases) > 60
    assert len(odd) <= 0.015 * len(cases), odd
    assert [case for case in odd if benchmark.explain(case) == benchmark.UNEXPLAINED] == []


@held
@pytest.mark.full  # every operator of torch in every dtype; every tenth is in each run, above
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_fidelity():
    benchmark = fidelity()
    cases = benchmark.sweep(benchmark.DTYPES, None, None)
    rows = {row["dtype"]: row["percent"] for row in benchmark.summary(cases)}
    assert rows["float32"] >= 99
    assert rows["all"] >= 97


def test_a_composite_that_does_not_call_its_own_out_is_there():
    with simulate("m3-max-64gb"):
        x = torch.rand(3, device="mps") + 3
        assert torch.mvlgamma(x, 2).is_mps
        assert x.mvlgamma_(2).is_mps


@pytest.mark.parametrize(("spatial", "refused"), [(1, True), (2, True), (3, False)])
def test_a_long_convolution_in_each_number_of_dimensions(spatial, refused):
    shape = (1, 2, *(1,) * (spatial - 1), 70_000)
    call = convolution(image(*shape), image(3, 2, *(1,) * spatial))
    if refused:
        with pytest.raises(NotImplementedError, match="Output channels > 65536"):
            Coverage("2.13.0", "14.5").check(*call)
    else:
        Coverage("2.13.0", "14.5").check(*call)


def test_no_function_is_called_outside_of_every_mode():
    assert coverage.calling_function() == ""


def test_a_torch_without_its_yaml(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert yaml_index.installed_index.__wrapped__().kinds == {}


def test_a_torchgen_without_the_yaml(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("torchgen", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert yaml_index._yaml_path() is None
