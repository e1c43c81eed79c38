"""``mpskit estimate``: the command against the function, exit codes, and bad words."""

import json

import pytest

from mpskit import estimate_from_config, get_optimal_device
from mpskit.cli.main import main
from mpskit.estimate.models import bundled_models

pytestmark = pytest.mark.needs_torch("estimate")

MODEL = """
from torch import nn

def make_model():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

def squares(model, batch):
    return model(batch[0]).square().mean()
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return f"{path}:make_model"


def test_the_table(model, capsys):
    words = ["estimate", model, "--batch", "float32[32,64]", "int64[32]", "--machine", "m1-8gb"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "optimizer state" in out
    assert "m1-8gb: fits" in out


def test_json_also_when_the_answer_is_no(model, capsys):
    words = ["estimate", model, "--batch", "float32[40000000,64]", "--machine", "m1-8gb", "--json"]
    assert main([*words, "--optimizer", "sgd"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["command"]) == (1, "estimate")
    assert document["verdict"]["answer"] == "does-not-fit"
    assert document["peak_bytes"] > 8 * 2**30


def test_inference_on_the_cpu(model, capsys):
    words = ["estimate", model, "--batch", "input=float32[8,64]", "--inference", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["gradients_bytes"], document["verdict"]) == (0, None)


def test_a_picture(model, capsys, tmp_path):
    path = tmp_path / "timeline.png"
    assert main(["estimate", model, "--batch", "float32[8,64]", "--plot", str(path)]) == 0
    assert path.stat().st_size > 10_000
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "nowhere.py:make"}, "FILE.py:NAME"),
        ({"name": "missing"}, "has no 'missing'"),
        ({"batch": "int64"}, "dtype"),
        ({"machine": "m0-1gb"}, "m0-1gb"),
        ({"device": "cuda"}, "not known to have 'cuda'"),
        ({"precision": "fp17"}, "fp17"),
    ],
)
def test_words_that_cannot_be_used(model, capsys, change, text):
    target = change.get("model", model)
    if "name" in change:
        target = target.rpartition(":")[0] + ":" + change["name"]
    words = ["estimate", target, "--batch", change.get("batch", "float32[8,64]")]
    words += [
        word
        for key in ("device", "precision")
        if key in change
        for word in (f"--{key}", change[key])
    ]
    assert main([*words, "--machine", change.get("machine", "m1-8gb")]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "device"),
    [
        ([], str(get_optimal_device().device)),
        (["--device", "mps"], "mps"),
        (["--machine", "m1-8gb"], "mps"),
        (["--machine", "intel-mac-32gb"], "cpu"),
        (["--machine", "T4"], "cuda"),
        (["--machine", "m1-8gb", "--device", "cpu"], "cpu"),
    ],
)
def test_the_target_is_the_machines_own_device(model, capsys, words, device):
    assert main(["estimate", model, "--batch", "float32[8,64]", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == device


def test_a_precision_by_lightnings_name(model, capsys):
    words = ["estimate", model, "--batch", "float32[8,64]", "--precision", "16-mixed", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp16-mixed"


GPT2 = ["estimate", "gpt2", "--batch-size", "2", "--seq-len", "128"]


def test_a_bundled_model_is_the_functions_answer(capsys):
    expected = estimate_from_config("openai-community/gpt2", batch_size=2, seq_len=128)
    assert main([*GPT2, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == expected.peak_bytes
    adapters = estimate_from_config(
        "openai-community/gpt2", batch_size=2, seq_len=128, lora=8, precision="bf16"
    )
    assert main([*GPT2, "--json", "--lora", "8", "--precision", "bf16"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == adapters.peak_bytes


def test_a_base_in_half_precision(capsys):
    based = estimate_from_config(
        "openai-community/gpt2", batch_size=2, seq_len=128, lora=8, base="bf16"
    )
    assert main([*GPT2, "--json", "--lora", "8", "--base", "bf16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["peak_bytes"], found["base"]) == (based.peak_bytes, "bf16")
    assert main([*GPT2, "--base", "bf16"]) == 2
    assert "give lora= too" in capsys.readouterr().err


def test_generation_is_inference(capsys):
    decoded = estimate_from_config(
        "openai-community/gpt2", batch_size=2, seq_len=128, training=False, cache_len=136
    )
    assert main([*GPT2, "--json", "--cache-len", "136"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == decoded.peak_bytes
    assert main([*GPT2, "--cache-len", "136"]) == 0
    assert "inference: 2 rows of 128 tokens, until 136" in capsys.readouterr().out


def test_the_defaults_of_a_config_are_told(capsys):
    assert main(["estimate", "gpt2", "--inference"]) == 0
    assert "openai-community/gpt2, inference: 1 row of 512 tokens" in capsys.readouterr().out


def test_a_config_by_its_path(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(bundled_models()["openai-community/gpt2"]))
    answers = []
    for given in ("gpt2", str(path), str(tmp_path)):
        assert main(["estimate", given, *GPT2[2:], "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]


def test_what_does_not_fit_is_told_what_would(capsys):
    words = ["estimate", "Qwen/Qwen2.5-1.5B", "--machine", "m1-16gb"]
    assert main([*words, "--json"]) == 1
    helps = json.loads(capsys.readouterr().out)["would_help"]
    lora = estimate_from_config("Qwen/Qwen2.5-1.5B", batch_size=1, seq_len=512, lora=8)
    assert bool(lora.fits("m1-16gb")) == any(line.startswith("--lora 8 would") for line in helps)
    assert helps[-1].startswith("the smallest Mac that it fits as it is: ")
    name = helps[-1].partition(": ")[2].partition(",")[0]
    whole = estimate_from_config("Qwen/Qwen2.5-1.5B", batch_size=1, seq_len=512)
    assert whole.fits(name).answer == "fits"


def test_the_list_of_bundled_models(capsys):
    assert main(["estimate", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bundled_models())
    assert main(["estimate", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == bundled_models()


def test_an_optimizer_with_arguments_and_a_step_of_ones_own(model, capsys):
    words = ["estimate", model, "--batch", "float32[32,64]", "int64[32]", "--json"]
    sizes = {}
    for name in ("sgd", "sgd:lr=0.1,momentum=0.9", "adamw", "adamw:amsgrad=true"):
        assert main([*words, "--optimizer", name, "--step", "squares"]) == 0
        sizes[name] = json.loads(capsys.readouterr().out)["optimizer_bytes"]
    weights = 4 * (64 * 256 + 256 + 256 * 10 + 10)
    assert sizes["sgd"] == 0
    assert (
        weights <= sizes["sgd:lr=0.1,momentum=0.9"] < sizes["adamw"] < sizes["adamw:amsgrad=true"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a model"),
        (["gtp2"], "near: openai-community/gpt2"),
        (["gpt2", "--batch", "int64[1,8]"], "--batch is for FILE.py:NAME"),
        (["gpt2", "--plot", "x.png"], "--plot is for FILE.py:NAME"),
        (["gpt2", "--accumulate", "0"], "accumulate"),
        (["{model}", "--checkpointing"], "--checkpointing is for a config"),
        (["{model}"], "--batch 'int64[1,512]'"),
        (["{model}", "--lora", "8"], "--lora is for a config"),
        (["{model}", "--batch", "float32[8,64]", "--step", "none"], "has no 'none'"),
        (["{model}", "--batch", "float32[8,64]", "--optimizer", "adamx"], "torch.optim has no"),
        (["{model}", "--batch", "float32[8,64]", "--optimizer", "sgd:lr"], "write KEY=VALUE"),
        (["{model}", "--batch", "float32[8,64]", "--optimizer", "sgd:x=1"], "no argument 'x'"),
    ],
)
def test_what_cannot_be_estimated(model, capsys, words, said):
    assert main(["estimate", *(word.format(model=model) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_told_before_the_work(model, capsys, tmp_path):
    words = ["estimate", model, "--batch", "float32[8,64]", "--plot"]
    assert main([*words, str(tmp_path / "missing" / "x.png")]) == 2
    assert "missing" in capsys.readouterr().err
    assert main([*words, str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
