"""A reproduction of a few lines for each known bug that can be tried.

``python -m mpskit.correctness.reproductions KEY DEVICE`` runs one and prints what it found; it has
a process of its own because a wrong kernel may abort or hang. Each function computes the same thing
on the device and on the CPU, and returns pairs (device's, CPU's) that have to agree. The shapes are
those of the threads in ``data/known_issues.toml``, or smaller ones with the same condition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AFFECTED", "REPRODUCTIONS", "RIGHT", "UNTRIED", "error_of", "main"]

AFFECTED, RIGHT, UNTRIED = "mpskit-affected", "mpskit-right", "mpskit-untried"

Pairs = Iterator[tuple[Tensor, Tensor]]
_HALF = (torch.float16, torch.bfloat16)
# Far above the rounding of any kernel, and far below what the threads report.
_TOLERANCE = {torch.float16: 0.05, torch.bfloat16: 0.1}
_USUAL_TOLERANCE = 0.01


def error_of(got: Tensor, want: Tensor) -> float:
    """Return how far a result is off, relative to the largest value; inf for NaN or a shape."""
    got, want = got.detach().cpu().double(), want.detach().double()
    if got.shape != want.shape or not torch.equal(got.isfinite(), want.isfinite()):
        return float("inf")
    finite = want.isfinite()
    off = (got - want)[finite].abs().max().item() if finite.any() else 0.0
    scale = want[finite].abs().max().item() if finite.any() else 0.0
    return off / max(scale, 1e-30) if off else 0.0


def _both(call: Callable[..., Any], device: str, *tensors: Tensor) -> Pairs:
    """Yield the results of one function on both devices."""
    got, want = call(*(t.to(device) for t in tensors)), call(*tensors)
    yield from zip(*([x] if isinstance(x, Tensor) else x for x in (got, want)), strict=True)


def _gradients(call: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = call(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.device, out.dtype)
    return [out, *torch.autograd.grad(out, leaves, weights)]


def _addcmul(device: str) -> Pairs:
    one = torch.ones(4, 3)
    yield from _both(lambda p, a: p.clone().t().addcmul_(a, a), device, torch.zeros(3, 4), one)
    yield from _both(lambda p, a: p.clone().t().addcdiv_(a, a), device, torch.zeros(3, 4), one)


def _random(device: str) -> Pairs:
    for fill in ("normal_", "uniform_", "exponential_", "random_"):
        drawn = getattr(torch.zeros(64, 64).to(device).t(), fill)()
        yield (drawn.cpu() != 0).float().mean().gt(0.5).float(), torch.tensor(1.0)
    yield torch.zeros(8, 8).to(device).t().bernoulli_(1.0), torch.ones(8, 8)


def _silu_multinomial(device: str) -> Pairs:
    yield from _both(lambda x: functional.silu(x.t()), device, torch.randn(5, 7))
    sure = torch.zeros(7, 5)
    sure[[3, 1, 6, 0, 2], range(5)] = 1
    yield from _both(lambda p: torch.multinomial(p.t(), 1).float(), device, sure)


def _item(device: str) -> Pairs:
    x = torch.zeros(4).to(device)
    x[1] = 1
    yield x, torch.tensor([0.0, 1, 0, 0])


def _linear_weight(device: str) -> Pairs:
    yield from _both(
        lambda x, w: functional.linear(x, w.t()), device, torch.randn(8, 48), torch.randn(48, 32)
    )


def _attend(device: str, sizes: tuple[tuple[int, ...], ...], **how: Any) -> Pairs:
    with torch.no_grad():
        call = functional.scaled_dot_product_attention
        yield from _both(lambda q, k, v: call(q, k, v, **how), device, *map(torch.randn, sizes))


def _sdpa_vector(device: str) -> Pairs:
    yield from _attend(device, ((1, 4, 1, 64), (1, 4, 33, 64), (1, 4, 33, 64)))


def _sdpa_grouped(device: str) -> Pairs:
    keys = (1, 2, 2049, 64)
    yield from _attend(device, ((1, 8, 1, 64), keys, keys), enable_gqa=True)


def _sdpa_values(device: str) -> Pairs:
    yield from _attend(device, ((1, 2, 8, 64), (1, 2, 8, 64), (1, 2, 8, 32)))


def _sdpa_causal(device: str) -> Pairs:
    q, k, v = (torch.randn(1, 4, 64, 64) for _ in range(3))
    for dtype in _HALF:
        low = [x.to(dtype) for x in (q, k, v)]
        yield _causal(*(x.to(device) for x in low)), _causal(*(x.float() for x in low)).to(dtype)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _sdpa_masked(device: str) -> Pairs:
    mask = torch.ones(8, 8, dtype=torch.bool).tril(-1)  # the first row sees nothing
    q = torch.randn(1, 2, 8, 16)
    with torch.no_grad():
        yield from _both(
            lambda x, m: functional.scaled_dot_product_attention(x, x, x, attn_mask=m)[:, :, :1],
            device,
            q,
            mask,
        )


def _dirty(device: str) -> None:
    """Leave large numbers in what the allocator has cached."""
    del [torch.full((1 << n,), 1e6).to(device) for n in range(12, 24)][:]


def _long_inner(device: str) -> Pairs:
    for inner in (32_767, 32_800, 40_000):
        _dirty(device)
        yield from _both(torch.mm, device, torch.randn(33, inner), torch.randn(inner, 17))


def _long_inner_batched(device: str) -> Pairs:
    for inner in (32_767, 40_000):
        _dirty(device)
        yield from _both(torch.bmm, device, torch.randn(2, 9, inner), torch.randn(2, inner, 5))


def _gappy_copy(device: str) -> Pairs:
    base = torch.full((3, 4), -1.0)
    base[:, :2].copy_(torch.ones(3, 4).to(device)[:, :2])
    yield base, torch.tensor([[1.0, 1, -1, -1]] * 3)


def _conv_weight(device: str) -> Pairs:
    weight, x = torch.randn(3, 16, 3, 3, 3), torch.randn(2, 16, 16, 16)
    yield from _both(
        lambda x, w: _gradients(lambda x, w: functional.conv2d(x, w[:, :, 1]), x, w),
        device,
        x,
        weight,
    )


def _expanded(device: str) -> Pairs:
    def gradient(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(((x @ w.T).sin() @ v.T).squeeze(-1).sum(), x)[0]

    yield from _both(gradient, device, torch.randn(64, 3), torch.randn(16, 3), torch.randn(1, 16))
    yield from _both(
        lambda a, b: a.expand(8, 16) @ b, device, torch.randn(1, 16), torch.randn(16, 4)
    )


def _randn_like(device: str) -> Pairs:
    drawn = torch.randn_like(torch.zeros(8, 8, 8, 8, 8).to(device)).cpu()
    yield torch.tensor(float(drawn.unique().numel() > drawn.numel() / 2)), torch.tensor(1.0)


def _linear(device: str, shape: tuple[int, ...], out: int, *, bias: bool = True) -> Pairs:
    tensors = [torch.randn(shape), torch.randn(out, shape[-1])]
    yield from _both(functional.linear, device, *tensors, *([torch.randn(out)] if bias else []))


def _linear_bias(device: str) -> Pairs:
    yield from _linear(device, (80, 1, 2), 192)
    yield from _linear(device, (2, 64, 128), 384)


def _linear_large_batch(device: str) -> Pairs:
    yield from _linear(device, (65_537, 2, 64), 64)


def _linear_half(device: str) -> Pairs:
    for dtype in _HALF:
        x, w = (torch.randn(s).to(device, dtype) for s in ((2, 13, 1024), (1024, 1024)))
        first = functional.linear(x, w).cpu()
        for _ in range(10):
            yield functional.linear(x, w), first


def _linear_half_backward(device: str) -> Pairs:
    for dtype in _HALF:
        x, w, g = (
            torch.randn(s).to(device, dtype) for s in ((2, 13, 1024), (1024, 1024), (2, 13, 1024))
        )
        x.requires_grad_()
        first = torch.autograd.grad(functional.linear(x, w), x, g)[0].cpu()
        for _ in range(10):
            yield torch.autograd.grad(functional.linear(x, w), x, g)[0], first


def _linear_transposed(device: str) -> Pairs:
    x, w = torch.randn(2, 256, 256), torch.randn(256, 256)
    got = functional.linear(x.to(device).bfloat16(), w.to(device).bfloat16().T)
    yield got, functional.linear(x, w.T).bfloat16()


def _lstm_backward(device: str) -> Pairs:
    """The gradient along a direction, against two forward passes with the same dropout mask."""
    lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5).to(device)
    x, along = (torch.randn(3, 2, 4).to(device) for _ in range(2))

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(42)
        found: Tensor = lstm(x)[0].sum()
        return found

    x.requires_grad_()
    slope = (torch.autograd.grad(loss(x), x)[0] * along).sum().cpu()
    with torch.no_grad():
        numeric = (loss(x + 0.01 * along) - loss(x - 0.01 * along)).cpu() / 0.02
    # Rounding in float32 leaves some 1e-4 of the outputs' size; the bug is off by its own size.
    scale = numeric.abs().clamp_min(0.05)
    yield ((slope - numeric) / scale).abs().gt(0.2).float(), torch.tensor(0.0)


def _lstm_eval(device: str) -> Pairs:
    here = nn.LSTM(4, 8, num_layers=2, dropout=0.5)
    there = nn.LSTM(4, 8, num_layers=2, dropout=0.5).to(device)
    there.load_state_dict(here.state_dict())
    x = torch.randn(5, 3, 4)
    there(x.to(device))[0].sum().backward()
    with torch.no_grad():
        yield there.eval()(x.to(device))[0], here.eval()(x)[0]


def _layer_norm(device: str) -> Pairs:
    def gradients(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        return _gradients(lambda w, b: functional.layer_norm(x, (16,), w, b), w, b)

    yield from _both(gradients, device, torch.randn(8, 16), torch.ones(16), torch.zeros(16))


def _conv3d(device: str) -> Pairs:
    for channels in (4, 8, 32):
        tensors = torch.randn(1, channels, 8, 8, 8), torch.randn(channels, channels, 3, 3, 3)
        yield from _both(functional.conv3d, device, *tensors)


def _channel_slice(device: str) -> Pairs:
    x = torch.randn(2, 6, 8, 8).contiguous(memory_format=torch.channels_last)
    mean, weight = torch.zeros(2), torch.randn(3, 2, 1, 1)
    yield from _both(lambda x, w: functional.conv2d(x[:, 2:4], w), device, x, weight)
    yield from _both(lambda x: functional.avg_pool2d(x[:, 2:4], 2), device, x)
    yield from _both(
        lambda x, m, v: functional.batch_norm(x[:, 2:4], m, v), device, x, mean, mean + 1
    )


def _chunk(device: str) -> Pairs:
    x, weight = torch.randn(3, 8, 8, 8), torch.randn(5, 4, 3, 3)
    for part in range(2):
        yield from _both(
            lambda x, w, part=part: functional.conv2d(x.chunk(2, 1)[part], w), device, x, weight
        )


def _long_kernel(device: str) -> Pairs:
    yield from _both(
        functional.conv2d, device, torch.randn(4, 1, 2, 600), torch.randn(8, 1, 1, 256)
    )


def _conv_batch(device: str) -> Pairs:
    for shape in ((65_536, 1, 1), (65_536, 1, 1, 1)):
        conv = functional.conv1d if len(shape) == 3 else functional.conv2d
        yield from _both(
            lambda x, w, conv=conv: torch.autograd.grad(
                conv(x, (leaf := w.detach().requires_grad_())).mean(), leaf
            )[0],
            device,
            torch.ones(shape),
            torch.ones(1, *shape[1:]),
        )


def _reductions(device: str) -> Pairs:
    x = torch.rand(16, 525, 256)
    there, total = x.to(device), x.double()
    for call, want in ((torch.sum, total.sum()), (torch.mean, total.mean())):
        got = torch.stack([call(there) for _ in range(300)])
        yield got, want.float().expand(300)


def _argsort(device: str) -> Pairs:
    x = torch.rand(3, (1 << 22) + 1)
    order = x.to(device).argsort(dim=0).cpu()
    yield x.gather(0, order), x.sort(dim=0).values


def _multinomial(device: str) -> Pairs:
    """Eighty million numbers: on the thread's Mac one in 30 million was a wrong zero."""
    logits = torch.randn(40_000) * 2
    logits[123] += 200  # the others underflow to zero
    p = logits.softmax(-1).to(device).expand(100, -1).contiguous()
    drawn = torch.cat([torch.multinomial(p, 1) for _ in range(20)]).cpu()
    yield (drawn != 123).float().sum(), torch.tensor(0.0)


def _scan(device: str) -> Pairs:
    x = torch.rand(2, 3, 2, 2, 3)
    for call in (torch.cumsum, torch.cumprod):
        yield from _both(lambda x, call=call: call(x, 1), device, x)
    yield from _both(lambda x: x.sort(1).values, device, x)


def _batch_norm_3d(device: str) -> Pairs:
    x = torch.randn(4, 6, 5, 4, 3)
    yield from _both(
        lambda x: functional.batch_norm(x.permute(0, 4, 1, 2, 3), None, None, training=True),
        device,
        x,
    )


def _grid_sample(device: str) -> Pairs:
    yield from _both(
        lambda x, g: functional.grid_sample(x, g.permute(0, 2, 3, 4, 1), align_corners=False),
        device,
        torch.randn(1, 4, 4, 8, 8),
        torch.randn(1, 3, 4, 8, 8),
    )


def _large_linear(device: str) -> Pairs:
    def gradients(x: Tensor, inner: Tensor, outer: Tensor, target: Tensor) -> list[Tensor]:
        leaves = [w.detach().requires_grad_() for w in (inner, outer)]
        out = functional.linear(functional.linear(x, leaves[0]), leaves[1])
        return list(torch.autograd.grad((out - target).square().mean(), leaves))

    sizes = ((256, 130), (130, 130), (50_257, 130), (256, 50_257))
    yield from _both(gradients, device, *map(torch.randn, sizes))


REPRODUCTIONS: dict[str, Callable[[str], Pairs]] = {
    "addcmul-non-contiguous": _addcmul,
    "random-non-contiguous": _random,
    "silu-multinomial-non-contiguous": _silu_multinomial,
    "item-assignment": _item,
    "linear-non-contiguous-weight": _linear_weight,
    "sdpa-vector-kernel": _sdpa_vector,
    "sdpa-grouped-query": _sdpa_grouped,
    "sdpa-value-dimension": _sdpa_values,
    "sdpa-causal-half": _sdpa_causal,
    "sdpa-masked-rows": _sdpa_masked,
    "matmul-long-inner-2d": _long_inner,
    "matmul-long-inner-batched": _long_inner_batched,
    "copy-gappy-strides": _gappy_copy,
    "conv2d-non-contiguous-weight": _conv_weight,
    "expanded-operand": _expanded,
    "randn-like-5d": _randn_like,
    "linear-bias-macos-26": _linear_bias,
    "linear-bias-large-batch": _linear_large_batch,
    "linear-half-m5": _linear_half,
    "linear-half-backward-m5": _linear_half_backward,
    "linear-transposed-bf16-macos-27": _linear_transposed,
    "lstm-dropout-backward": _lstm_backward,
    "lstm-dropout-eval": _lstm_eval,
    "layer-norm-frozen-input": _layer_norm,
    "conv3d-macos-26-2": _conv3d,
    "channels-last-slice": _channel_slice,
    "conv2d-chunk-view": _chunk,
    "conv2d-kernel-256": _long_kernel,
    "conv-backward-large-batch": _conv_batch,
    "reductions-in-succession": _reductions,
    "argsort-many-columns": _argsort,
    "multinomial-zero-probability": _multinomial,
    "scan-above-4d": _scan,
    "batch-norm-3d-non-contiguous": _batch_norm_3d,
    "grid-sample-3d-grid": _grid_sample,
    "gradients-large-linear": _large_linear,
}


def main(key: str, device: str) -> str:
    """Run one reproduction and return its verdict in one line."""
    torch.manual_seed(0)
    try:
        for got, want in REPRODUCTIONS[key](device):
            error = error_of(got, want)
            if error > _TOLERANCE.get(got.dtype, _USUAL_TOLERANCE):
                return f"{AFFECTED} {error:.2g}"
    except Exception as error:  # noqa: BLE001 - what the backend refuses cannot be tried
        return f"{UNTRIED} {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return RIGHT


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
