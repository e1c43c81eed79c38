"""transformers Trainer that evaluates at each step."""

from _common import llama, train

train(llama(), eval_strategy="steps", eval_steps=1)
