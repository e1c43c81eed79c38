"""The CPU's rules as dispatch asks them: from an operator's arguments."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpskit.estimate.trace.workspace import cpu_op_memory

pytestmark = pytest.mark.needs_torch("estimate")

RULES = cpu_op_memory()
X = torch.empty(4, 64, 28, 28)
WEIGHT = torch.empty(96, 64, 3, 3)
TAIL = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def test_a_frozen_input_takes_no_more():
    gradient = torch.empty(4, 96, 28, 28)
    taken = [
        RULES["convolution_backward"]((gradient, X, WEIGHT, None, *TAIL, mask), True)
        for mask in ([True, True, False], [False, True, False], [False, False, False])
    ]
    assert taken[0].workspace_bytes >= taken[1].workspace_bytes > taken[2].workspace_bytes == 0


def test_operands_that_a_kernel_cannot_read_are_copied_first():
    plain = RULES["convolution"]((X, WEIGHT, None, *TAIL), True)
    turned = torch.empty(28, 28, 4, 64).permute(2, 3, 1, 0)
    scattered = RULES["convolution"]((turned, WEIGHT, None, *TAIL), True)
    assert scattered.workspace_bytes == plain.workspace_bytes + X.numel() * 4


def test_channels_last_weights_are_not_copied_once_more():
    x = X.contiguous(memory_format=torch.channels_last)
    weight = WEIGHT.contiguous(memory_format=torch.channels_last)
    both = RULES["convolution"]((x, weight, None, *TAIL), True)
    one = RULES["convolution"]((x, WEIGHT, None, *TAIL), True)
    assert one.workspace_bytes - both.workspace_bytes in {0, WEIGHT.numel() * 4}
    assert both.workspace_high_bytes >= both.workspace_bytes


@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "baddbmm"])
def test_products_in_half_precision_are_a_range(name):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        batch = (2,) if "bmm" in name else ()
        left, right = torch.empty(*batch, 64, 32, dtype=dtype), torch.empty(*batch, 32, 16)
        args = (left, right) if name in {"mm", "bmm"} else (left, left, right)
        taken = RULES[name](args, True)
        assert taken.workspace_bytes == 0
        assert bool(taken.workspace_high_bytes) is (dtype is not torch.float32)


def test_batch_norm_takes_its_input_once_more():
    assert RULES["native_batch_norm_backward"]((X, X), True).workspace_bytes == X.numel() * 4


class _Workspaces(TorchDispatchMode):
    """Compares the workspace that each call of oneDNN's LSTM gives back with the rule's."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mkldnn_rnn_layer.default:
            kept = result[3].numel() * result[3].element_size()
            self.pairs.append((kept, RULES["mkldnn_rnn_layer"](args, True).outputs[3]))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(32, 64, 8, 20), (100, 37, 3, 17), (512, 256, 2, 16)])
def test_the_workspace_of_an_lstm_is_what_onednn_says(sizes, dtype):
    width, hidden, batch, steps = sizes
    layer = torch.nn.LSTM(width, hidden).to(dtype)
    with _Workspaces() as seen:
        layer(torch.randn(steps, batch, width, dtype=dtype))
    if not seen.pairs:
        pytest.skip(f"this processor computes an LSTM in {dtype} without oneDNN")
    assert [rule for _, rule in seen.pairs] == [kept for kept, _ in seen.pairs]
