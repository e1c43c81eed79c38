"""Generation with a key-value cache; no optimizer."""

import torch
from _common import llama

model = llama().to("mps").eval()
tokens = torch.randint(1000, (2, 16)).to("mps")
model.generate(tokens, max_new_tokens=24, min_new_tokens=24, do_sample=False)
