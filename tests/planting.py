"""Wrong kernels for the simulated Mac: each names an operator, and when it goes wrong."""

import torch

from mpskit.simulation import rules

aten = torch.ops.aten


def plant(monkeypatch, **kernels):
    """Let operators run these functions on the simulated device; enter the machine after."""
    for name, kernel in kernels.items():
        kernel._schema = getattr(aten, name).default._schema  # asked of those that draw numbers
    named = {f"aten::{name}": kernel for name, kernel in kernels.items()}
    monkeypatch.setattr(rules, "KERNELS", {**rules.KERNELS, **named})


def gelu_reads_storage(self, *, approximate="none"):
    """As if a non-contiguous input lay row by row."""
    if not self.is_contiguous():
        self = self.as_strided(self.shape, torch.empty(self.shape, device="meta").stride())
    return aten.gelu(self, approximate=approximate)


def addmm_without_bias(self, mat1, mat2, *, beta=1, alpha=1):
    return aten.mm(mat1, mat2) if self.dim() == 1 else aten.addmm(self, mat1, mat2)


def mm_stops_at_512(self, mat2):
    return aten.mm(self[:, :512], mat2[:512])


def attention_leaks(
    query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None
):
    """Four queries at a time share the last one's mask, as pytorch#195910 found."""
    if not is_causal:
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
    at = torch.arange(query.shape[-2])
    mask = torch.arange(key.shape[-2]) <= (at // 4 * 4 + 3).unsqueeze(1)
    bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, False, attn_mask=bias, scale=scale
    )


def layer_norm_backward_frozen(grad, x, shape, mean, rstd, weight, bias, mask):
    found = aten.native_layer_norm_backward(grad, x, shape, mean, rstd, weight, bias, mask)
    if mask[0]:
        return found
    return found[0], *(None if part is None else part * 0.5 for part in found[1:])


def relu_backward_everywhere(grad_output, self, threshold):
    return grad_output.clone()


def addcdiv_forgets(self, tensor1, tensor2, *, value=1):
    """A non-contiguous output stays as it was, as pytorch#118115 found."""
    if not self.is_contiguous():
        return self
    return aten.addcdiv_(self, tensor1, tensor2, value=value)


def softmax_nan(self, dim, half_to_float):
    return torch.full_like(self, float("nan"))


def silu_off_by_a_thousandth(self):
    return aten.silu(self) * 1.001


def forget_the_mask(monkeypatch):
    """Let the gradients of an LSTM on mps ignore its dropout, as pytorch#190056 found."""
    original = torch._VF.lstm

    def lstm(x, hx, weights, has_biases, layers, dropout, train, *rest):
        got = original(x, hx, weights, has_biases, layers, dropout, train, *rest)
        if not (dropout and train and x.device.type == "mps"):
            return got
        plain = original(x, hx, weights, has_biases, layers, 0.0, train, *rest)
        return tuple(p + (g - p).detach() for g, p in zip(got, plain, strict=True))

    monkeypatch.setattr(torch._VF, "lstm", lstm)


def noisy(name):
    """Return a kernel whose every element is off by up to two roundings."""
    func = getattr(aten, name)

    def kernel(*args, **kwargs):
        result = func(*args, **kwargs)
        for one in result if isinstance(result, tuple) else [result]:
            if isinstance(one, torch.Tensor) and one.is_floating_point() and one.numel():
                factor = torch.linspace(-1, 1, one.numel()).reshape(one.shape).to(one.dtype)
                one.mul_(1 + factor * torch.finfo(one.dtype).eps)
        return result

    return kernel


NOISY = [
    "mm",
    "addmm",
    "bmm",
    "convolution",
    "convolution_backward",
    "native_layer_norm",
    "native_layer_norm_backward",
    "_softmax",
    "_softmax_backward_data",
    "gelu",
    "silu",
    "exp",
    "tanh",
    "sigmoid",
    "mul",
    "div",
    "rsqrt",
    "mean",
    "sum",
    "native_batch_norm",
    "native_batch_norm_backward",
    "native_group_norm",
    "native_group_norm_backward",
]
