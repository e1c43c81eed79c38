import gc

import pytest
import torch

from mpskit.backends.versions import has
from mpskit.simulation import simulate, torch_c

GIB = 2**30
MIB = 2**20


def test_one_ten_mebibyte_tensor_takes_a_heap_of_one_gibibyte():
    with simulate("m1-8gb") as mac:
        x = torch.empty(10 * MIB, dtype=torch.uint8, device="mps")
        assert torch.mps.current_allocated_memory() == mac.allocated_bytes == 10 * MIB
        assert torch.mps.driver_allocated_memory() == mac.driver_bytes == GIB
        del x
        assert torch.mps.current_allocated_memory() == 0
        assert torch.mps.driver_allocated_memory() == GIB
        torch.mps.empty_cache()
        assert torch.mps.driver_allocated_memory() == 0


def test_small_tensors_are_rounded_up_to_256_bytes():
    with simulate("m1-8gb"):
        x = torch.ones(3, device="mps")
        assert torch.mps.current_allocated_memory() == 256
        assert x.element_size() * x.numel() == 12


@pytest.mark.parametrize(
    ("machine", "allowed"),
    [("m1-8gb", "9.07"), ("m1-16gb", "18.13"), ("m1-max-64gb", "81.60")],
)
def test_published_out_of_memory_figures(machine, allowed):
    with simulate(machine, macos="15.3"):
        held = []

        def fill():
            while True:
                held.append(torch.empty(GIB, dtype=torch.uint8, device="mps"))

        with pytest.raises(RuntimeError, match="MPS backend out of memory") as full:
            fill()
        text = str(full.value)
        binary = "i" if has("mps.binary_units", torch.__version__) else ""
        assert f"max allowed: {allowed} G{binary}B" in text
        pool = "shared" if has("mps.shared_storage", torch.__version__) else "private"
        assert f"Tried to allocate 1024.00 M{binary}B on {pool} pool." in text
        assert f"MPS allocated: {len(held)}.00 G{binary}B" in text
        assert type(full.value) is RuntimeError


def test_a_tensor_too_large_is_refused_before_it_is_made():
    with simulate("m1-8gb"), pytest.raises(RuntimeError, match=r"Invalid buffer size: 4.00 Gi?B"):
        torch.zeros(4, GIB, dtype=torch.uint8, device="mps")
    with simulate("m1-8gb"), pytest.raises(RuntimeError, match=r"Invalid buffer size: 400.00 Gi?B"):
        torch.randn(400, GIB // 4, device="mps")


def test_out_of_memory_leaves_the_rest_usable():
    with simulate("m1-8gb") as mac:
        torch.mps.set_per_process_memory_fraction(0.2)
        x = torch.ones(100 * MIB, dtype=torch.uint8, device="mps")
        with pytest.raises(RuntimeError, match=r"max allowed: 1.07 Gi?B"):
            torch.empty(GIB, dtype=torch.uint8, device="mps")
        assert mac.allocated_bytes == 100 * MIB
        assert (x[:10] + 1).is_mps


def test_wrong_pair_of_watermarks(monkeypatch):
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.7")
    with simulate("m1-8gb"):
        assert torch.backends.mps.is_available()
        with pytest.raises(RuntimeError, match=r"^invalid low watermark ratio 1.4$"):
            torch.ones(1, device="mps")
        # The variables are read once, into statics: mending them now does not help.
        monkeypatch.setenv("PYTORCH_MPS_LOW_WATERMARK_RATIO", "0.5")
        with pytest.raises(RuntimeError, match=r"invalid low watermark ratio 1.4"):
            torch.mps.current_allocated_memory()


def test_variables_are_read_at_the_first_use(monkeypatch):
    with simulate("m1-8gb"):
        monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.1")
        monkeypatch.setenv("PYTORCH_MPS_LOW_WATERMARK_RATIO", "0.1")
        with pytest.raises(RuntimeError, match=r"max allowed: 546.13 Mi?B"):
            torch.empty(GIB, dtype=torch.uint8, device="mps")


@pytest.mark.parametrize("text", ["0.0", "nonsense"])
def test_zero_and_garbage_mean_no_limit(monkeypatch, text):
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", text)
    with simulate("m1-8gb"):
        held = [torch.empty(GIB, dtype=torch.uint8, device="mps") for _ in range(10)]
        assert torch.mps.driver_allocated_memory() == 10 * GIB
        del held


@pytest.mark.needs_torch("accelerator.get_memory_info")
def test_recommended_and_accelerator_figures():
    with simulate("m1-8gb") as mac:
        recommended = torch.mps.recommended_max_memory()
        assert recommended == 5726633984
        x = torch.empty(10 * MIB, dtype=torch.uint8, device="mps")
        assert torch.accelerator.memory_allocated() == 10 * MIB
        assert torch.accelerator.memory_reserved() == GIB
        assert torch.accelerator.get_memory_info() == (recommended - GIB, recommended)
        del x
        torch.accelerator.empty_cache()
        assert torch.accelerator.memory_reserved() == 0
        assert torch.accelerator.max_memory_allocated() == mac.peak_allocated_bytes == 10 * MIB
        torch.accelerator.reset_peak_memory_stats()
        assert torch.accelerator.max_memory_allocated() == mac.peak_allocated_bytes == 0


def test_views_are_charged_once_and_live_as_long_as_one_of_them():
    with simulate("m1-8gb") as mac:
        x = torch.empty(MIB, device="mps")
        view = x[:10].view(2, 5)
        assert mac.allocated_bytes == 4 * MIB
        del x
        assert mac.allocated_bytes == 4 * MIB
        del view
        assert mac.allocated_bytes == 0


def test_the_graph_keeps_what_it_saved():
    with simulate("m1-8gb") as mac:
        x = torch.empty(MIB, device="mps", requires_grad=True)
        y = x.exp()
        z = y.sum()
        del y
        assert mac.allocated_bytes == 8 * MIB + 256
        del z
        assert mac.allocated_bytes == 4 * MIB


def test_moving_away_frees_and_resizing_is_seen():
    with simulate("m1-8gb") as mac:
        model = torch.nn.Linear(1024, 1024, bias=False).to("mps")
        assert mac.allocated_bytes == 4 * MIB
        model.cpu()
        assert mac.allocated_bytes == 0
    with simulate("m1-8gb") as mac:
        x = torch.empty(MIB, dtype=torch.uint8, device="mps")
        x.untyped_storage().resize_(0)
        assert mac.allocated_bytes == 0
        x.untyped_storage().resize_(2 * MIB)
        assert mac.allocated_bytes == 2 * MIB


def test_no_storage_is_forgotten_after_a_training_step():
    with simulate("m1-8gb") as mac:
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
        )
        model.to("mps")
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            model(torch.ones(8, 64, device="mps")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        del model, optimizer
        gc.collect()
        assert mac.allocated_bytes == 0


def attention(length: int, *, grad: bool) -> int:
    with simulate("m1-8gb") as mac:
        shape = (1, 4, length, 16)
        q, k, v = (torch.zeros(shape, device="mps", requires_grad=grad) for _ in range(3))
        mac.reset_peaks()
        before = mac.allocated_bytes
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert out.shape == shape
        return mac.allocated_bytes - before


def test_attention_is_charged_as_the_math_path():
    weights = 4 * 256 * 256 * 4
    assert attention(256, grad=True) >= weights
    assert attention(256, grad=False) == 4 * 256 * 16 * 4


def test_figures_stay_readable_after_the_exit():
    with simulate("m1-8gb") as mac:
        torch.empty(10 * MIB, dtype=torch.uint8, device="mps")
    assert mac.peak_allocated_bytes == 10 * MIB
    assert mac.peak_driver_bytes == GIB


@pytest.mark.needs_torch("accelerator.memory.mps")
def test_nothing_is_allocated_before_the_first_use():
    with simulate("m1-8gb"):
        assert torch.accelerator.memory_allocated() == 0
        assert torch.accelerator.memory_stats() == {}
        torch.accelerator.empty_cache()


def test_fraction_is_checked_by_torch():
    with simulate("m1-8gb"):
        with pytest.raises(TypeError, match="must be `float`"):
            torch.mps.set_per_process_memory_fraction(1)
        with pytest.raises(ValueError, match="Allowed range: 0~2"):
            torch.mps.set_per_process_memory_fraction(3.0)


def test_peaks_before_anything_is_allocated():
    with simulate("m1-8gb") as mac:
        mac.reset_peaks()
        assert (mac.peak_allocated_bytes, mac.peak_driver_bytes) == (0, 0)
        torch.ones(3, device="mps")
        assert mac.peak_allocated_bytes == 256
        mac.reset_peaks()
        assert mac.peak_allocated_bytes == 0


def test_what_the_cpu_cannot_allocate_either_is_the_mac_s_error():
    with simulate("m1-8gb"):
        tiny = torch.ones(1, device="mps")
        with pytest.raises(RuntimeError, match="Invalid buffer size: 1048576"):
            tiny.expand(2**48).clone()
        assert torch.mps.current_allocated_memory() == 256


def test_a_storage_of_the_cpu_is_resized_and_shared_as_ever():
    with simulate("m1-8gb"):
        storage = torch.ones(4).untyped_storage()
        storage.resize_(32)
        assert (storage.nbytes(), torch.mps.current_allocated_memory()) == (32, 0)
        assert torch.ones(2).share_memory_().is_shared()


def test_a_storage_goes_elsewhere_as_torch_lets_it():
    def moved():
        try:
            return torch.ones(4).untyped_storage().to(device="meta").device.type
        except Exception as error:
            return repr(error)

    outside = moved()
    with simulate("m1-8gb"):
        assert moved() == outside


def test_an_accelerator_without_figures_says_so(monkeypatch):
    """As torch before 2.13 does on a Mac."""
    known = torch_c.has
    monkeypatch.setattr(
        torch_c,
        "has",
        lambda name, version: name != "accelerator.memory.mps" and known(name, version),
    )
    with simulate("m1-8gb"), pytest.raises(RuntimeError, match="is not a DeviceAllocator"):
        torch.accelerator.empty_cache()
