"""Operators made of others: in inference mode, and written in Python."""

import pytest
import torch
from torch.nn import functional

from mpskit.backends.versions import older
from mpskit.simulation import simulate


@pytest.fixture(autouse=True)
def mac():
    with simulate("m1-8gb", fallback=False) as machine:
        yield machine


CALLS = {
    "to a dtype": lambda x: x.to(torch.float16),
    "half": lambda x: x.half(),
    "reshape with a copy": lambda x: x.T.reshape(-1),
    "contiguous": lambda x: x.T.contiguous(),
    "matmul": lambda x: x @ x.T,
    "linear": lambda x: functional.linear(x, x),
    "softmax": lambda x: functional.softmax(x, -1),
    "cross entropy": lambda x: functional.cross_entropy(x, torch.zeros(3, dtype=int, device="mps")),
    "std": lambda x: x.std(),
    "where": lambda x: torch.where(x > 0, x, 0),
    "lstm": lambda x: torch.nn.LSTM(4, 5, device="mps")(x)[0],
    "attention": lambda x: functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "instance norm": lambda x: functional.instance_norm(x[None]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_results_of_inference_mode_are_on_the_mac(call):
    with torch.inference_mode():
        made = call(torch.ones(3, 4, device="mps"))
        assert made.device == torch.device("mps", 0)
        moved = call(torch.ones(3, 4).to("mps"))
        assert moved.is_mps


def test_inference_mode_computes_the_same():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    source = torch.randn(5, 4)
    with torch.no_grad():
        expected = model(source)
    model.to("mps")
    with torch.inference_mode():
        assert torch.equal(model(source.to("mps")).cpu(), expected)


NO_SVD = older(torch.__version__, "2.14")
without_svd = pytest.mark.skipif(not NO_SVD, reason="MPS has an SVD and eigh since 2.14")

REFUSED = {
    "adaptive pool": lambda x: functional.adaptive_avg_pool1d(x[None], 3),
    "pdist": lambda x: torch.pdist(x),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_what_is_missing_inside_is_missing_in_every_mode(call, mode):
    with mode(), pytest.raises(NotImplementedError):
        call(torch.ones(3, 4, device="mps"))


@without_svd
@pytest.mark.parametrize(
    "call", [torch.linalg.svdvals, torch.linalg.cond, torch.linalg.matrix_rank]
)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_singular_values_without_vectors(call, mode):
    with mode(), pytest.raises(NotImplementedError, match=r"aten::_linalg_svd\.U"):
        call(torch.ones(3, 4, device="mps"))


@without_svd
@pytest.mark.filterwarnings("ignore:.*linalg_svd.*will fall back:UserWarning")
def test_svd_itself_always_runs_on_the_cpu():
    u, s, v = torch.linalg.svd(torch.eye(3, device="mps"))
    assert {u.device.type, s.device.type, v.device.type} == {"mps"}


@without_svd
def test_pinv_of_a_symmetric_matrix_has_no_eigh():
    matrix = torch.eye(3, device="mps")
    with pytest.raises(NotImplementedError, match=r"aten::_linalg_eigh\.eigenvalues"):
        torch.linalg.pinv(matrix, hermitian=True)


def test_an_operator_written_in_python_sees_the_mac():
    seen = []

    @torch.library.custom_op("mpskit_try::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        parts = [x.to(torch.float16), torch.zeros(2, device=x.device), x.new_ones(2), x > 0]
        seen.extend(part.device.type for part in parts)
        return x * 2

    @torch.library.custom_op("mpskit_try::most", mutates_args=())
    def most(x: torch.Tensor) -> torch.Tensor:
        return torch.mode(x).values

    assert twice(torch.ones(3, device="mps")).is_mps
    assert seen == ["mps"] * 4
    seen.clear()
    assert twice(torch.ones(3)).is_cpu
    assert seen == ["cpu"] * 4
    with pytest.raises(NotImplementedError, match="aten::mode"):
        most(torch.ones(3, device="mps"))
