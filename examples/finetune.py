"""Fine-tune a small transformer through low-rank adapters, with its memory capped and watched.

    python examples/finetune.py [--base base.pt] [--batch-size 32] [--steps 60] [--out out]

docs/tutorial.md goes through it. The base is a checkpoint of `make_model`, or random weights where
none is given. The text is ``pydoc_data.topics``, which ships with Python; nothing is downloaded.
Writes OUT/adapters.pt, OUT/memory.csv and, with matplotlib, OUT/memory.png.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own spelling

from mpskit import (
    CacheKeeper,
    MemoryMonitor,
    MissingExtraError,
    get_optimal_device,
    keep_awake,
    limit_memory,
    to_device,
)

CONTEXT, WIDTH, HEADS, LAYERS, RANK = 256, 512, 8, 6, 8


class Adapted(nn.Module):
    """A frozen linear layer plus a trained product of two narrow ones (LoRA)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.base(x) + self.up(self.down(x))


class Block(nn.Module):
    """One pre-norm transformer layer with causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, width) to the same shape."""
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class TextModel(nn.Module):
    """A causal language model over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, time) of int64 to (batch * time, 256)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.blocks(self.token(tokens) + self.place(places))).flatten(0, 1)


def make_model(base: Path | None = None) -> nn.Module:
    """Return the model, frozen but for adapters in its attention and its head."""
    model = TextModel()
    if base is not None:
        model.load_state_dict(torch.load(base, map_location="cpu", weights_only=True))
    model.requires_grad_(False)
    for block in model.blocks:
        block.qkv = Adapted(block.qkv)
        block.out = Adapted(block.out)
    model.head = Adapted(model.head)
    return model


def batches(size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs, targets) of (size, CONTEXT) and (size * CONTEXT,) without end."""
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    while True:
        starts = torch.randint(len(text) - CONTEXT - 1, (size,)).tolist()
        rows = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
        yield rows[:, :-1], rows[:, 1:].flatten()


def train(model: nn.Module, device: torch.device, batch_size: int, steps: int) -> list[float]:
    """Train the adapters, and return the mean loss of each tenth of the steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    keeper = CacheKeeper(device)
    total, means = torch.zeros((), device=device), []
    for step, batch in zip(range(1, steps + 1), batches(batch_size), strict=False):
        inputs, targets = to_device(batch, device)
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        keeper.step()
        total += loss.detach()  # stays on the device: reading it would wait for the GPU
        if step % max(1, steps // 10) == 0:
            means.append(total.item() / max(1, steps // 10))
            total.zero_()
            print(f"step {step} of {steps}: loss {means[-1]:.3f}", file=sys.stderr)
    return means


def main() -> int:
    """Fine-tune, and write the adapters and what the memory did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--limit", default="60%", help="of the Mac's memory, or such as 4GiB")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)

    device, info = get_optimal_device()
    print(f"{device}: {info.reason}")
    model = make_model(options.base).to(device)
    cap = limit_memory(options.limit, device) if device.type != "cpu" else contextlib.nullcontext()
    with cap, keep_awake("fine-tune"), MemoryMonitor(device, interval=0.1) as monitor:
        means = train(model, device, options.batch_size, options.steps)

    adapters = {k: v.cpu() for k, v in model.state_dict().items() if ".up." in k or ".down." in k}
    torch.save(adapters, options.out / "adapters.pt")
    print(f"loss {means[0]:.3f} -> {means[-1]:.3f}")
    print(monitor)
    monitor.to_csv(options.out / "memory.csv")
    with contextlib.suppress(MissingExtraError):
        monitor.plot(options.out / "memory.png")
    return int(means[-1] >= means[0])


if __name__ == "__main__":
    sys.exit(main())
