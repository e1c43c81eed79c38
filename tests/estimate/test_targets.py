"""What a target does differently from the CPU."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional

from mpskit.dispatch.mps_op_memory import RULES
from mpskit.errors import ArgumentError
from mpskit.estimate import TensorSpec, estimate_inference_memory, estimate_training_memory
from mpskit.estimate.targets import target_for


class Attend(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.proj, self.length = nn.Linear(64, 192), length

    def forward(self, x):
        q, k, v = self.proj(x).view(2, self.length, 3, 4, 16).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v)


def test_attention_keeps_its_weights_on_mps_only():
    extra = {}
    for length in (64, 512):
        batch = TensorSpec((2, length, 64))
        make = lambda n=length: Attend(n)
        mps = estimate_training_memory(make, batch, optimizer=None, device="mps")
        cpu = estimate_training_memory(make, batch, optimizer=None, device="cpu")
        extra[length] = mps.activations_bytes - cpu.activations_bytes
    # batch x heads x length x length floats, and scaled copies of query and key
    assert extra[512] > 2 * 4 * 512 * 512 * 4
    assert extra[64] < extra[512] / 30


def test_inference_takes_the_weights_for_a_moment():
    batch = TensorSpec((2, 512, 64))
    mps = estimate_inference_memory(lambda: Attend(512), batch, device="mps")
    cpu = estimate_inference_memory(lambda: Attend(512), batch, device="cpu")
    assert mps.peak_bytes - cpu.peak_bytes >= 2 * 4 * 512 * 512 * 4 * 0.8


def test_grouped_queries_copy_keys_and_values():
    query, key = torch.empty(1, 8, 16, 4), torch.empty(1, 2, 16, 4)
    name = "_scaled_dot_product_flash_attention_for_cpu"
    grouped = RULES[name]((query, key, key), False)
    plain = RULES[name]((query, query, query), False)
    assert grouped.workspace_bytes - plain.workspace_bytes == 2 * query.numel() * 4


def optimizer_temporaries(device):
    model = lambda: nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(20)))
    told = estimate_training_memory(model, TensorSpec((1, 128)), device=device)
    return told.temporaries_bytes / (128 * 128 * 4)


def test_optimizers_go_through_all_parameters_at_once_on_cuda_only():
    assert optimizer_temporaries("mps") < 4
    assert optimizer_temporaries("cuda") > 10


def test_autocast_casts_by_the_table_of_the_target():
    seen = {}

    class Look(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

        def forward(self, x):
            y = self.linear(x)
            seen["linear"], seen["norm"] = y.dtype, self.norm(y).dtype
            return y

    for device, norm in (("cpu", torch.bfloat16), ("mps", torch.float32)):
        estimate_training_memory(Look, TensorSpec((4, 16)), precision="bf16-mixed", device=device)
        assert seen == {"linear": torch.bfloat16, "norm": norm}


@pytest.mark.parametrize("device", ["mps", "mps:0", torch.device("mps", 0)])
def test_a_device_by_any_name(device):
    assert target_for(device).device == "mps"


def test_no_such_device():
    with pytest.raises(ArgumentError, match="tpu"):
        target_for("tpu")


def test_a_simulated_mac_reports_what_was_estimated():
    import mpskit

    def make():
        return nn.Sequential(Attend(64), nn.GELU(), nn.Linear(16, 16))

    told = estimate_training_memory(make, TensorSpec((2, 64, 64)), device="mps")
    model, batch = make(), torch.randn(2, 64, 64)
    with mpskit.simulate("m1-8gb") as mac:
        model.to("mps")
        batch = batch.to("mps")
        optimizer = torch.optim.AdamW(model.parameters())
        inside = estimate_training_memory(make, TensorSpec((2, 64, 64)), device="mps")
        mac.reset_peaks()
        for _ in range(2):
            # A loop keeps its loss while the optimizer works, which decides what is reused.
            loss = model(batch).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
        assert told.peak_bytes == pytest.approx(mac.peak_allocated_bytes, rel=0.01)
        assert told.driver_bytes == pytest.approx(mac.peak_driver_bytes, rel=0.05)
    assert inside == told


class Blocks(nn.Module):
    """What the decoder of an autoencoder is made of: its attention leaves channels-last behind."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.norm, self.qkv = nn.GroupNorm(8, 32), nn.Linear(32, 96)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)
        self.register_buffer("positions", torch.arange(4096))

    def forward(self, x):
        x = self.first(x)
        rows, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, -1)
        scale = torch.sqrt(torch.tensor(channels, dtype=torch.float) * 3)
        y = functional.scaled_dot_product_attention(q / scale.to(q.dtype), k, v)[:, 0]
        x = x + y.transpose(1, 2).reshape(rows, channels, height, width)
        x = functional.silu(self.middle(x))
        return self.last(functional.interpolate(x, scale_factor=2.0).contiguous())


@pytest.mark.needs_torch("simulation")
def test_on_mps_the_estimate_is_what_a_simulated_mac_reports():
    import mpskit

    def one_step(model, x, optimizer):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    x = torch.randn(2, 3, 32, 32)
    told = estimate_training_memory(Blocks, x, train_step=one_step, device="mps")
    model = Blocks()
    with mpskit.simulate("m3-ultra-512gb") as mac:
        model.to("mps")
        batch = x.to("mps")
        optimizer = torch.optim.AdamW(model.parameters())
        gc.collect()
        gc.disable()
        mac.reset_peaks()
        for _ in range(2):
            one_step(model, batch, optimizer)
        gc.enable()
        assert told.peak_bytes == mac.peak_allocated_bytes
        assert told.driver_bytes == mac.peak_driver_bytes
