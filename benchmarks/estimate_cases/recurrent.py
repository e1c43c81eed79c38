"""Recurrent networks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from estimate_cases.case import Case, spec

__all__ = ["CASES"]


class Language(nn.Module):
    """An embedding, a recurrent stack and a classifier over the vocabulary."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        vocabulary: int,
        width: int,
        hidden: int,
        layers: int,
        **options,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrent = kind(width, hidden, layers, batch_first=True, **options)
        out = hidden * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(out, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(ids))[0])


class Packed(nn.Module):
    """Sequences of different lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(128, 256, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.head(out.mean(1))


class Cells(nn.Module):
    """A loop of LSTM cells."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(128, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


def sequence(batch: int, length: int) -> tuple:
    return spec(batch, length, dtype="int64"), spec(batch, length, dtype="int64")


adam = torch.optim.Adam
LENGTHS = torch.tensor([50, 40, 30, 20, 10, 5, 45, 35])

CASES = [
    Case(
        "lstm-adam", "rnn", partial(Language, nn.LSTM, 10_000, 512, 1024, 2), sequence(16, 64), adam
    ),
    Case(
        "lstm-bidirectional",
        "rnn",
        partial(Language, nn.LSTM, 5_000, 256, 256, 2, bidirectional=True, dropout=0.1),
        sequence(32, 48),
        adam,
    ),
    Case("gru-adam", "rnn", partial(Language, nn.GRU, 10_000, 256, 512, 2), sequence(16, 64), adam),
    Case(
        "rnn-sgd",
        "rnn",
        partial(Language, nn.RNN, 10_000, 256, 512, 1),
        sequence(16, 64),
        torch.optim.SGD,
    ),
    Case("gru-packed", "rnn", Packed, {"x": spec(8, 50, 128), "lengths": LENGTHS}, adam),
    Case("lstm-cells", "rnn", Cells, (spec(32, 40, 128), spec(32, dtype="int64")), adam),
    Case(
        "lstm-inference",
        "rnn",
        lambda: Language(nn.LSTM, 10_000, 512, 1024, 2).eval(),
        spec(16, 64, dtype="int64"),
        None,
        inference=True,
    ),
]
