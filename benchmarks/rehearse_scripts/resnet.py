"""A plain loop: a ResNet of four stages and SGD with momentum."""

import torch
from transformers import ResNetConfig, ResNetForImageClassification

torch.manual_seed(0)
config = ResNetConfig(
    depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", num_labels=10
)
model = ResNetForImageClassification(config).to("mps")
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for _ in range(3):
    images, labels = torch.randn(4, 3, 64, 64).to("mps"), torch.randint(10, (4,)).to("mps")
    loss = torch.nn.functional.cross_entropy(model(images).logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
