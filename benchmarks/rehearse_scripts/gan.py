"""A GAN: two models, two optimizers, one of them with a detached input."""

import torch
from torch import nn

torch.manual_seed(0)
device = torch.device("mps")
generator = nn.Sequential(
    nn.ConvTranspose2d(64, 64, 4), nn.BatchNorm2d(64), nn.ReLU(),
    nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh(),
).to(device)  # fmt: skip
judge = nn.Sequential(
    nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(1024, 1)
).to(device)
step_g = torch.optim.Adam(generator.parameters(), 2e-4)
step_d = torch.optim.Adam(judge.parameters(), 2e-4)
loss = nn.BCEWithLogitsLoss()
for _ in range(3):
    real = torch.randn(32, 3, 8, 8, device=device)
    fake = generator(torch.randn(32, 64, 1, 1, device=device))
    step_d.zero_grad()
    of_real, of_fake = judge(real), judge(fake.detach())
    (loss(of_real, torch.ones_like(of_real)) + loss(of_fake, torch.zeros_like(of_fake))).backward()
    step_d.step()
    step_g.zero_grad()
    judged = judge(fake)
    loss(judged, torch.ones_like(judged)).backward()
    step_g.step()
