"""The CUDA cards by the names that drivers and people give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpskit.host.cuda_cards import cuda_card, cuda_cards


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("T4", "T4"),
        ("Tesla T4", "T4"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_cuda_cards(text, name):
    assert cuda_card(text).name == name


@pytest.mark.parametrize("text", ["", "RTX 3060 Ti", "RTX 3060 Laptop GPU", "RTX 9999", "A1000"])
def test_other_cards(text):
    assert cuda_card(text) is None


def test_every_card_has_a_source():
    assert len(cuda_cards()) >= 8
    assert all(card.sources and card.fp32_tflops > 5 for card in cuda_cards().values())


@given(st.text())
def test_any_text_is_a_name(text):
    found = cuda_card(text)
    assert found is None or found in cuda_cards().values()
