"""transformers Trainer in float32."""

from _common import llama, train

train(llama())
