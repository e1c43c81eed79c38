"""Twelve kinds of models, small, each with a batch: a device that is right agrees on all of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """Two convolutions, each with a norm."""

    def __init__(self, channels, norm):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList((norm(channels), norm(channels)))

    def forward(self, x):
        inner = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(x + self.norms[1](self.second(inner)))


class Experts(nn.Module):
    """Each row goes to the two of four experts that a gate chooses."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            share = (weights * (chosen == number)).sum(-1, keepdim=True)
            out = out + expert(x) * share
        return out


class Calls(nn.Module):
    """A linear layer and one function."""

    def __init__(self, call, bias=True):
        super().__init__()
        self.layer, self.call = nn.Linear(8, 8, bias=bias), call

    def forward(self, x):
        return self.call(self.layer(x))


def mlp():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
    return model, (torch.randn(4, 8), torch.tensor([0, 1, 2, 3]))


def convolutions():
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 4)
    return nn.Sequential(*layers), torch.randn(2, 3, 16, 16)


def lstm():
    return nn.LSTM(8, 8, num_layers=2, dropout=0.5), torch.randn(5, 2, 8)


def gru():
    return nn.GRU(8, 8, num_layers=2, dropout=0.2), torch.randn(5, 2, 8)


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 7, 16)


def decoder():
    layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerDecoder(layer, 1), (torch.randn(2, 5, 16), torch.randn(2, 7, 16))


def gpt2():
    transformers = pytest.importorskip("transformers")

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens)), _tokens()


def llama():
    transformers = pytest.importorskip("transformers")

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)), _tokens()


def bert():
    transformers = pytest.importorskip("transformers")

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    more = {"num_attention_heads": 2, "max_position_embeddings": 32}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, **more)), _tokens()


def unet():
    middle = Residual(8, lambda channels: nn.GroupNorm(2, channels))
    layers = nn.Conv2d(3, 8, 3, padding=1), middle, nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3)
    return nn.Sequential(*layers), torch.randn(2, 3, 8, 8)


def embedding_bag():
    words = torch.arange(20).reshape(4, 5)
    return nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 4)), words


def experts():
    return Experts(), torch.randn(6, 16)


def resnet():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Residual(8, nn.BatchNorm2d)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*layers, *head), torch.randn(4, 3, 12, 12)


def _tokens():
    tokens = torch.arange(24).reshape(2, 12)
    return {"input_ids": tokens, "labels": tokens}


CLEAN = (
    *(mlp, convolutions, lstm, gru, encoder, decoder, gpt2),
    *(llama, bert, unet, experts, resnet),
    pytest.param(embedding_bag, marks=pytest.mark.from_torch("2.10", "MPS has _embedding_bag")),
)
