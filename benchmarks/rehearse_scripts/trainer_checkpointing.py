"""transformers Trainer with gradient checkpointing."""

from _common import llama, train

train(llama(), gradient_checkpointing=True)
