"""The bundled models by name, and what an unknown name is told."""

import pytest

from mpskit.errors import ArgumentError
from mpskit.estimate.models import bundled_models, find_model


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("gpt2", "openai-community/gpt2"),
        ("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct"),
    ],
)
def test_a_name_with_or_without_its_owner(name, full):
    assert find_model(name) == full


def test_every_bundled_model_is_found_by_its_own_name():
    assert [find_model(name) for name in bundled_models()] == list(bundled_models())


def test_an_unknown_name_is_told_the_near_ones():
    with pytest.raises(ArgumentError, match=r"near: Qwen/Qwen2.5-7B.*--list") as caught:
        find_model("Qwen/Qwen2-7B")
    assert caught.value.given == "Qwen/Qwen2-7B"
    with pytest.raises(ArgumentError) as far:
        find_model("zzzzzzzzzzzzzzz")
    assert "near" not in str(far.value)
