"""LoRA by peft on a tiny GPT-2."""

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")


def tuned(device):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    lora = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True
    )
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), lora).to(device)
    ids = torch.randint(0, 32, (4, 8)).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad.device.type == device for parameter in trained)
    return model, losses


def test_float32_is_bit_equal_to_the_cpu(both):
    inside, outside = both(tuned)
    assert inside == outside


def test_an_adapter_saved_on_the_mac_merges_on_the_cpu(tmp_path):
    import mpskit

    with mpskit.simulate("m1-8gb"):
        model, _ = tuned("mps")
        model.save_pretrained(tmp_path)
    base = model.get_base_model()
    assert next(base.parameters()).device.type == "cpu"
    assert (tmp_path / "adapter_model.safetensors").exists()
