"""transformers' own class of a config, for whoever has it installed and asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mpskit.errors import ArgumentError
from mpskit.estimate.reference.repeat_layers import Subject, traced_depth

__all__ = ["build_transformers"]


def build_transformers(
    config: Mapping[str, Any], *, lora: Any, checkpointing: bool, depth: int | None
) -> Subject:
    """Return transformers' model of a config, with as few layers as show the others.

    Raises:
        ArgumentError: transformers 5 is not installed or does not know the config, or adapters
            are asked for.
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
        layers = [int(read.num_hidden_layers)]
        if read.is_encoder_decoder:
            layers.append(int(read.num_decoder_layers))
            read.decoder_start_token_id = 0
        read.num_hidden_layers, *rest = traced_depth(tuple(layers), depth)
        read.num_decoder_layers = rest[0] if rest else None
        if isinstance(getattr(read, "layer_types", None), list):
            read.layer_types = read.layer_types[: read.num_hidden_layers]
        made: Any = getattr(transformers, named, None) or transformers.AutoModelForCausalLM
        with torch.device("meta"):
            model = (getattr(made, "_from_config", None) or made.from_config)(read)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArgumentError(f"transformers cannot build it: {error}", given=named) from error
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    stacks = [
        found
        for found in model.modules()
        if isinstance(found, torch.nn.ModuleList)
        and isinstance(found[0], GradientCheckpointingLayer)
    ]
    labels: Any = "rows" if "ForSequenceClassification" in named else "tokens"
    bare = named.endswith("Model") and not named.endswith("HeadModel")
    return Subject(model, stacks, tuple(layers), None if bare else labels)
