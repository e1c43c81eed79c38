"""``workload_from_config``: counts from shallow traces against the whole model's."""

import pytest

from mpskit import workload_from_config
from mpskit.errors import ArgumentError, ArgumentTypeError
from mpskit.estimate.from_config import Stepped
from mpskit.estimate.reference.config import read_lora, read_shape
from mpskit.estimate.targets import target_for
from mpskit.speed.count import workload_of
from mpskit.speed.count_config import _Step

QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 320,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 6,
    "num_decoder_layers": 8,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}
MPS = target_for("mps")
SHALLOW = {**QWEN, "num_hidden_layers": 2}


@pytest.mark.parametrize("config", [QWEN, T5, SHALLOW], ids=["decoder", "both", "shallow"])
@pytest.mark.parametrize(
    ("training", "lora", "checkpointing", "precision"),
    [
        (True, None, False, "fp32"),
        (False, None, False, "fp16"),
        (True, 4, False, "bf16-mixed"),
        (True, 4, True, "fp32"),
    ],
)
def test_equals_the_whole_models_counts(config, training, lora, checkpointing, precision):
    found = workload_from_config(
        config,
        batch_size=2,
        seq_len=8,
        training=training,
        lora=lora,
        checkpointing=checkpointing,
        precision=precision,
    )
    shape = read_shape(config, tokens=8)
    how = Stepped(training, precision)
    step = _Step(shape, read_lora(shape, lora), None, how, (2, 8), checkpointing, MPS)
    counts, params = step.counted(shape.layers)
    whole = workload_of(counts, recurrent=False, training=training, params=params)
    assert found == whole.model_copy(update={"op_class": "transformer"})


def test_knows_the_parameters_of_a_bundled_model():
    counted = workload_from_config("Qwen/Qwen2.5-0.5B", batch_size=1, seq_len=16, training=False)
    assert counted.params == 494032768
    # Two operations for each weight and token, the tied output layer's included.
    assert counted.flops == pytest.approx(2 * 494032768 * 16, rel=0.02)


def test_decoding_reads_the_weights_and_the_cache():
    facts = {"batch_size": 3, "seq_len": 1, "training": False, "precision": "bf16"}
    short = workload_from_config(QWEN, **facts)
    long = workload_from_config(QWEN, **facts, cached_tokens=100)
    assert short.op_class == "llm_decode"
    # Keys and values, seven layers, two heads of 16 numbers, two bytes each.
    assert long.bytes_moved - short.bytes_moved == 2 * 7 * 2 * 16 * 2 * 100 * 3
    assert short.bytes_moved >= 2 * short.params


def test_a_base_in_half_precision_moves_less():
    facts = {"batch_size": 2, "seq_len": 8, "lora": 4}
    plain = workload_from_config(QWEN, **facts)
    half = workload_from_config(QWEN, **facts, base="bf16", precision="bf16-mixed")
    assert half.bytes_moved < plain.bytes_moved
    assert (plain.dtype, half.dtype) == ("float32", "bfloat16")


def test_a_machine_means_its_device():
    facts = {"batch_size": 2, "seq_len": 8}
    assert workload_from_config(QWEN, **facts, machine="T4") == workload_from_config(
        QWEN, **facts, device="cuda"
    )
    assert workload_from_config(QWEN, **facts, machine="m1-8gb") == workload_from_config(
        QWEN, **facts
    )


def test_accumulated_batches_count():
    once, twice = (
        workload_from_config(QWEN, batch_size=1, seq_len=8, accumulate=n).flops for n in (1, 2)
    )
    assert 1.8 < twice / once < 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, ArgumentError),
        ({"seq_len": 1.5}, ArgumentTypeError),
        ({"training": 1}, ArgumentTypeError),
        ({"cached_tokens": 3}, ArgumentError),
        ({"cached_tokens": -1, "training": False}, ArgumentError),
        ({"cached_tokens": "3", "training": False}, ArgumentTypeError),
        ({"optimizer": "Muonic"}, ArgumentError),
        ({"precision": "int3"}, ArgumentError),
        ({"device": "tpu"}, ArgumentError),
        ({"base": "bf16"}, ArgumentError),
        ({"machine": "no such machine"}, ArgumentError),
    ],
)
def test_bad_input(options, error):
    with pytest.raises(error):
        workload_from_config(QWEN, **{"batch_size": 1, "seq_len": 8, **options})


def test_a_layer_more_is_a_layer_more():
    """Whatever the depth: the line through two shallow traces is the deep model's."""
    shape = read_shape(QWEN, tokens=8)
    step = _Step(shape, None, None, Stepped(), (1, 8), False, MPS)
    counts = [step.counted((layers,))[0] for layers in (4, 5, 6)]
    assert counts[2].flops - counts[1].flops == counts[1].flops - counts[0].flops
    assert counts[2] == counts[1].plus(counts[1], 1).plus(counts[0], -1)
