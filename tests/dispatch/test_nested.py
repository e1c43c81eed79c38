"""The tensors of nested values are found, in order, and nothing else is."""

from dataclasses import dataclass

import torch

from mpskit.dispatch.nested import tensors_in, tensors_of


@dataclass
class Output:
    scores: torch.Tensor
    more: tuple[torch.Tensor, ...]
    name: str = "x"


def test_tensors_are_found_in_what_models_return():
    one, two = torch.ones(1), torch.ones(2)
    assert list(map(len, tensors_of(Output(one, (two,))))) == [1, 2]
    assert list(map(len, tensors_of({"a": [one, None], "b": two}))) == [1, 2]
    assert list(tensors_of(Output)) == []


def test_an_operator_has_tensors_in_lists_only():
    one, two = torch.ones(1), torch.ones(2)
    assert list(map(len, tensors_in([one, [two, (one,)], 3, None]))) == [1, 2, 1]
    assert list(tensors_in([{"a": one}])) == []
