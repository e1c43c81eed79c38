"""A plain loop: an MLP and AdamW."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 10)
)
model.to("mps")
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    inputs, labels = torch.randn(256, 512).to("mps"), torch.randint(10, (256,)).to("mps")
    loss = nn.functional.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
