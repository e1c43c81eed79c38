"""transformers Trainer that accumulates two batches."""

from _common import llama, train

train(llama(), gradient_accumulation_steps=2)
