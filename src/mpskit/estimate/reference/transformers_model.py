"""transformers' own class of a config, for whoever has it installed and asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mpskit.errors import ArgumentError
from mpskit.estimate.reference.config import refuse
from mpskit.estimate.reference.repeat_layers import Subject, traced_depth

__all__ = ["build_transformers"]


def build_transformers(
    config: Mapping[str, Any], *, tokens: int, lora: Any, checkpointing: bool
) -> Subject:
    """Return transformers' model of a config, with as few layers as show the others.

    Raises:
        ArgumentError: transformers 5 is not installed or does not know the config, the layers
            differ, or adapters are asked for.
    """
    try:
        import transformers
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError as error:
        raise ArgumentError(
            "implementation='transformers' needs transformers 5: pip install transformers",
            given="transformers",
        ) from error
    if lora is not None:
        raise ArgumentError(
            "adapters are put on mpskit's own modules: leave implementation= out, or trace the "
            "peft model instead (estimate_training_memory)",
            given=lora,
        )
    given = {key: value for key, value in config.items() if key != "model_type"}
    named = str((config.get("architectures") or [""])[0])
    try:
        read: Any = transformers.AutoConfig.for_model(str(config.get("model_type")), **given)
        if read.is_encoder_decoder and getattr(read, "decoder_start_token_id", None) is None:
            read.decoder_start_token_id = 0
        made: Any = getattr(transformers, named, None) or transformers.AutoModelForCausalLM
        with torch.device("meta"):
            model = (getattr(made, "_from_config", None) or made.from_config)(read)
    except Exception as error:  # any class's own check of its config
        raise ArgumentError(f"transformers cannot build it: {error}", given=named) from error
    if checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    stacks = [
        found
        for found in model.modules()
        if isinstance(found, torch.nn.ModuleList)
        and isinstance(found[0], GradientCheckpointingLayer)
    ]
    layers = tuple(len(stack) for stack in stacks)
    kinds = set(getattr(read, "layer_types", None) or ())
    if len(kinds) > 1 and tokens >= (getattr(read, "sliding_window", None) or 0):
        refuse(f"its layers are of several kinds ({', '.join(sorted(kinds))})", named)
    for stack, count in zip(stacks, traced_depth(layers), strict=True):
        shapes = {tuple(p.shape for p in layer.parameters()) for layer in list(stack)[1:]}
        if len(shapes) > 1:
            refuse("its layers have weights of different shapes", named)
        del stack[count:]
    labels: Any = "rows" if "ForSequenceClassification" in named else "tokens"
    bare = named.endswith("Model") and not named.endswith("HeadModel")
    return Subject(model, stacks, layers, None if bare else labels)
