"""Train a small causal transformer on the English that ships with Python, on the best device.

    python examples/train_text.py [--steps 200] [--out out]

The text is ``pydoc_data.topics``, Python's own language reference. Nothing is downloaded. The
loss curve is written to OUT/train_text.png (with matplotlib installed) and OUT/train_text.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own spelling

from mpskit import get_optimal_device

CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 64, 128, 4, 2, 16


class Block(nn.Module):
    """One pre-norm transformer layer with causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, width) to the same shape."""
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(self.norm2(x))


class TextModel(nn.Module):
    """A causal language model over characters."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, time) of int64 to (batch, time, characters)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.token(tokens) + self.place(places))))


def load_text() -> torch.Tensor:
    """Return Python's language reference as one row of character numbers."""
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    number = {character: index for index, character in enumerate(alphabet)}
    return torch.tensor([number[character] for character in text])


def train(steps: int, device: torch.device) -> list[float]:
    """Train and return the loss of every step."""
    torch.manual_seed(0)
    data = load_text()
    model = TextModel(int(data.max()) + 1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    started = time.perf_counter()
    for step in range(steps):
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,))
        rows = torch.stack([data[s : s + CONTEXT + 1] for s in starts.tolist()]).to(device)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        show_progress(step + 1, steps, losses[-1], time.perf_counter() - started)
    return losses


def show_progress(step: int, steps: int, loss: float, seconds: float) -> None:
    """Draw a bar on a terminal; elsewhere a line every tenth of the way."""
    bar = "#" * (30 * step // steps)
    line = f"[{bar:<30}] {step}/{steps}  loss {loss:.3f}  {seconds:.0f} s"
    if sys.stderr.isatty():
        print(f"\r{line}", end="\n" if step == steps else "", file=sys.stderr, flush=True)
    elif step == 1 or step % max(1, steps // 10) == 0:
        print(line, file=sys.stderr, flush=True)


def draw(losses: list[float], title: str, path: Path) -> None:
    """Write the loss curve as a PNG, or say what is missing."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no picture: python -m pip install 'mpskit[plot]'")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses)
    axes.set(title=title, xlabel="step", ylabel="cross-entropy (nats per character)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    print(f"loss curve: {path}")


def main() -> int:
    """Train, report and draw; 1 if the loss fell by less than 30%."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    device, info = get_optimal_device()
    print(info)
    losses = train(arguments.steps, device)
    first, last = losses[0], sum(losses[-10:]) / len(losses[-10:])
    fall = 1 - last / first
    print(f"loss {first:.3f} -> {last:.3f} (mean of the last 10 steps), down {fall:.0%}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"device": str(device), "why": info.reason, "losses": losses}
    (arguments.out / "train_text.json").write_text(json.dumps(report, indent=1))
    draw(losses, f"train_text.py on {device}", arguments.out / "train_text.png")
    return int(fall < 0.3)


if __name__ == "__main__":
    sys.exit(main())
