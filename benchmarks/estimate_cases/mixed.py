"""What is neither of the usual families: diffusion, graphs, volumes, experts, checkpoints."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from estimate_cases.case import Case, labelled, spec
from estimate_cases.vision import Attention

__all__ = ["CASES"]


class TimedBlock(nn.Module):
    """A residual block of a diffusion U-Net: group norm, SiLU, and the time added."""

    def __init__(self, inside: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inside), nn.Conv2d(inside, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, out), nn.Conv2d(out, out, 3, padding=1)
        self.time = nn.Linear(time, out)
        self.skip = nn.Conv2d(inside, out, 1) if inside != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.conv2(functional.silu(self.norm2(y))) + self.skip(x)


class Spatial(nn.Module):
    """Attention over the pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.GroupNorm(8, width), Attention(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(flat).transpose(1, 2).reshape(x.shape)


class Diffusion(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (64, 128, 256)) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256))
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            TimedBlock(a, b, 256) for a, b in zip((64, *widths), widths, strict=False)
        )
        self.middle = Spatial(widths[-1])
        sizes = [(c + s, s) for c, s in zip((256, 256, 128), widths[::-1], strict=True)]
        self.up = nn.ModuleList(TimedBlock(a, b, 256) for a, b in sizes)
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        frequency = torch.exp(torch.arange(32, device=time.device) * -0.3)
        angle = time[:, None] * frequency[None]
        t = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        x, kept = self.first(x), []
        for block in self.down:
            x = block(x, t)
            kept.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, kept.pop()], dim=1), t)
        return self.last(x)


def denoise(model: nn.Module, batch: dict) -> Tensor:
    noise = torch.randn_like(batch["x"])
    return functional.mse_loss(model(batch["x"] + noise, batch["time"]), noise)


class Graph(nn.Module):
    """Message passing by gather and scatter."""

    def __init__(self, inside: int = 128, width: int = 256, layers: int = 3) -> None:
        super().__init__()
        sizes = [inside] + [width] * layers
        self.messages = nn.ModuleList(nn.Linear(2 * a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        for layer in self.messages:
            message = functional.relu(layer(torch.cat([x[source], x[target]], dim=-1)))
            x = message.new_zeros(x.shape[0], message.shape[1]).index_add(0, target, message)
        return self.head(x)


def node_loss(model: nn.Module, batch: dict) -> Tensor:
    return functional.cross_entropy(model(batch["x"], batch["edges"])[batch["train"]], batch["y"])


class Experts(nn.Module):
    """A mixture of experts: each token goes to two of eight, by index."""

    def __init__(self, width: int = 256, experts: int = 8, chosen: int = 2) -> None:
        super().__init__()
        self.chosen, self.router = chosen, nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, index = self.router(x).softmax(-1).topk(self.chosen, dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(index == number)
            out.index_add_(0, token, expert(x[token]) * weight[token, slot, None])
        return out


class MixtureModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers = (
            nn.Embedding(8000, 256),
            nn.ModuleList(Experts() for _ in range(4)),
        )
        self.head = nn.Linear(256, 8000)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).flatten(0, 1)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def mixture_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return functional.cross_entropy(model(ids), ids.flatten())


def volume() -> nn.Module:
    layers: list[nn.Module] = []
    for inside, out in ((1, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv3d(inside, out, 3, padding=1),
            nn.BatchNorm3d(out),
            nn.ReLU(),
            nn.MaxPool3d(2),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 5))


class Checkpointed(nn.Module):
    """torch.utils.checkpoint by hand."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)) for _ in range(8)
        )
        self.first, self.head = nn.Linear(512, 512), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.head(x)


class Speech(nn.Module):
    """1-D convolutions and a transposed one over a wave."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(1, 64, 16, 8),
            nn.PReLU(),
            nn.Conv1d(64, 128, 3, padding=2, dilation=2),
            nn.InstanceNorm1d(128),
            nn.ELU(),
        )
        self.decoder = nn.ConvTranspose1d(128, 1, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)[..., 1:-1])


class Recommender(nn.Module):
    """Embedding bags and a dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.item = nn.EmbeddingBag(50_000, 64), nn.Embedding(20_000, 64)
        self.mlp = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, bag: Tensor, item: Tensor) -> Tensor:
        return self.mlp(torch.cat([self.bag(bag), self.item(item)], dim=-1)).squeeze(-1)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s * (1 + x * (1 - s)))


class Custom(nn.Module):
    """A custom autograd function and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(4000, 512), nn.Linear(512, 512)
        self.head = nn.Linear(512, 4000, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(Swish.apply(self.body(self.embedding(ids))))


class Sequence(nn.Module):
    """torch's own transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.1)
        self.embedding, self.body = nn.Embedding(4000, 256), nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(256, 4000)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(ids)))


adam, adamw = torch.optim.Adam, torch.optim.AdamW
GENERATOR = torch.Generator().manual_seed(0)
NOISE = {"x": spec(4, 3, 64, 64), "time": spec(4)}
GRAPH = {
    "x": spec(5000, 128),
    "edges": torch.randint(0, 5000, (2, 40_000), generator=GENERATOR),
    "train": torch.rand(5000, generator=GENERATOR) < 0.5,
}
GRAPH["y"] = torch.zeros(int(GRAPH["train"].sum()), dtype=torch.int64)
PAIRS = {"bag": spec(512, 20, dtype="int64"), "item": spec(512, dtype="int64")}
WORDS = (spec(16, 128, dtype="int64"), spec(16, 128, dtype="int64"))
WAVE = (spec(8, 1, 16_000), spec(8, 1, 15_984))

CASES = [
    Case("diffusion-unet", "conv", Diffusion, NOISE, step=denoise),
    Case("graph", "mlp", Graph, GRAPH, adam, step=node_loss),
    Case("volume", "conv", volume, labelled(2, 1, 32, 64, 64), adam),
    Case("experts", "transformer", MixtureModel, spec(8, 128, dtype="int64"), step=mixture_loss),
    Case("checkpoint", "mlp", lambda: Checkpointed(False), labelled(1024, 512)),
    Case("checkpoint-reentrant", "mlp", lambda: Checkpointed(True), labelled(1024, 512)),
    Case("speech-conv1d", "conv", Speech, WAVE, adam),
    Case("recommender", "mlp", Recommender, PAIRS, adam),
    Case("custom-function", "transformer", Custom, WORDS, adam),
    Case("torch-transformer", "transformer", Sequence, WORDS, adamw),
]
