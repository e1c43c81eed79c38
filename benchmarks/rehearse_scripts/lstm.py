"""A plain loop: a two-layer LSTM language model."""

import torch
from torch import nn


class Model(nn.Module):
    """Embedding, LSTM, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(2000, 128)
        self.lstm = nn.LSTM(128, 256, 2, batch_first=True)
        self.head = nn.Linear(256, 2000)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, time) to (batch, time, words)."""
        return self.head(self.lstm(self.token(tokens))[0])


torch.manual_seed(0)
model = Model().to("mps")
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    rows = torch.randint(2000, (16, 33)).to("mps")
    loss = nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
