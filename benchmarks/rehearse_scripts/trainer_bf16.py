"""transformers Trainer with bf16 autocast."""

from _common import llama, train

train(llama(), bf16=True)
