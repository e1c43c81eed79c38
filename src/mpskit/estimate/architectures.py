"""A transformer's config as the closed form reads it: one shape for every family.

The families and what sets them apart stand in ``data/model_families.toml``; shapes of published
models, with the source of each, in ``data/model_specs.json``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from mpskit._base.data import read_toml
from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = ["Architecture", "Head", "model_names", "read_architecture", "read_config"]

Head = Literal["causal", "masked", "classes", "none"]

# The class named in a config says what stands on top of the layers.
_HEADS: tuple[tuple[str, Head], ...] = (
    ("ForCausalLM", "causal"),
    ("LMHeadModel", "causal"),
    ("ForMaskedLM", "masked"),
    ("ForPreTraining", "masked"),
    ("ForSequenceClassification", "classes"),
)


_CLASSES = 2  # of a classifier whose config names none, as transformers has it


@dataclass(frozen=True)
class Architecture:
    """What decides a transformer's memory. Sizes are counts of numbers, not bytes.

    ``inner`` is the width of the MLP, ``positions`` and ``types`` the rows of learned tables (0:
    none), ``labels`` the classes of a classifier, ``bias`` the projections that have one.
    """

    family: str
    encoder: bool
    head: Head
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    positions: int
    types: int
    labels: int
    norm: str
    activation: str
    gated: bool
    tied: bool
    fused_qkv: bool
    qk_norm: bool
    sandwich: bool
    eager: bool
    softcap_scores: bool
    softcap_logits: bool
    bias: frozenset[str]
    hidden_dropout: float
    embedding_dropout: float
    attention_dropout: float


def read_architecture(config: Mapping[str, Any] | str | Path) -> Architecture:
    """Return the shape that a config describes.

    Args:
        config: a config as a mapping, the path of a config.json (or its folder), or the name of
            a bundled model such as ``"Qwen/Qwen2.5-0.5B"``.

    Raises:
        ArgumentError: no such file or model, an unknown family, a missing key or a wrong value.
        ArgumentTypeError: ``config`` is something else.
    """
    given = read_config(config)
    if isinstance(given.get("text_config"), Mapping) and "hidden_size" not in given:
        given = {**given["text_config"], "architectures": given.get("architectures", [])}
    family = _required(given, "model_type", str)
    rules = read_toml("model_families.toml").get(family)
    if rules is None:
        known = ", ".join(read_toml("model_families.toml"))
        raise ArgumentError(
            f"no closed form for model_type {family!r}: one of {known}", given=given
        )
    return _built(family, rules, given)


def read_config(config: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Return a config as a dictionary, wherever it stands."""
    if isinstance(config, Mapping):
        return dict(config)
    if not isinstance(config, str | Path):
        raise ArgumentTypeError(
            f"a config is a mapping, a path or a model's name, not {type(config).__name__}",
            given=config,
        )
    found = _bundled().get(str(config))
    return dict(found) if found is not None else _from_file(Path(config))


def model_names() -> tuple[str, ...]:
    """Return the names of the bundled models, aliases of the same shape included."""
    return tuple(_bundled())


@functools.cache
def _bundled() -> dict[str, dict[str, Any]]:
    text = resources.files("mpskit").joinpath("data", "model_specs.json").read_text("utf-8")
    named: dict[str, dict[str, Any]] = {}
    for name, spec in json.loads(text).items():
        named |= dict.fromkeys([name, *spec.get("same_architecture", ())], spec)
    return named


def _from_file(path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{str(path)!r} is neither a bundled model ({', '.join(list(_bundled())[:3])}, ...) "
            f"nor a readable config.json: {error}",
            given=str(path),
        ) from error
    if not isinstance(read, dict):
        raise ArgumentError(f"{str(path)!r} holds no JSON object", given=str(path))
    return read


class _Keys:
    """A family's keys in one config: its own names, the usual ones, the class's defaults."""

    def __init__(self, rules: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self._names = rules.get("names", {})
        self._defaults = rules.get("defaults", {})
        self._given = given

    def get(self, key: str, default: Any = None) -> Any:
        for name in (self._names.get(key, key), key):
            if self._given.get(name) is not None:
                return self._given[name]
        return self._defaults.get(key, default)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if value is None:
            name = self._names.get(key, key)
            raise ArgumentError(f"the config has no {name!r}", given=dict(self._given))
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < (0 if default == 0 else 1)
        ):
            raise ArgumentError(f"{key} is a positive whole number, not {value!r}", given=value)
        return value

    def share(self, key: str) -> float:
        value = self.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ArgumentError(f"{key} is a number from 0 to 1, not {value!r}", given=value)
        return float(value)


def _built(family: str, rules: Mapping[str, Any], given: Mapping[str, Any]) -> Architecture:
    keys = _Keys(rules, given)
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    encoder = rules["kind"] == "encoder"
    own_positions = rules["norm"] == "layer"
    return Architecture(
        family=family,
        encoder=encoder,
        head=_head(given, encoder=encoder),
        layers=keys.count("num_hidden_layers"),
        hidden=hidden,
        inner=keys.count("intermediate_size", 4 * hidden if family == "gpt2" else None),
        heads=heads,
        kv_heads=keys.count("num_key_value_heads", heads),
        head_width=keys.count("head_dim", max(hidden // heads, 1)),
        vocabulary=keys.count("vocab_size"),
        positions=keys.count("max_position_embeddings", 0) if own_positions else 0,
        types=keys.count("type_vocab_size", 0),
        labels=_labels(given),
        norm=rules["norm"],
        activation=str(keys.get("hidden_act", "silu")),
        gated=rules["gated"],
        tied=bool(keys.get("tie_word_embeddings")),
        fused_qkv=rules.get("fused_qkv", False),
        qk_norm=rules.get("qk_norm", False),
        sandwich=rules.get("sandwich", False),
        eager=rules.get("eager", False),
        softcap_scores=keys.get("attn_logit_softcapping") is not None,
        softcap_logits=keys.get("final_logit_softcapping") is not None,
        bias=_biases(rules, given),
        hidden_dropout=keys.share("hidden_dropout"),
        embedding_dropout=keys.share("embedding_dropout"),
        attention_dropout=keys.share("attention_dropout"),
    )


def _head(given: Mapping[str, Any], *, encoder: bool) -> Head:
    named = given.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    for text, head in _HEADS:
        if first.endswith(text):
            return head
    return "none" if encoder else "causal"


def _labels(given: Mapping[str, Any]) -> int:
    labels = given.get("id2label")
    return len(labels) if isinstance(labels, Mapping) and labels else _CLASSES


def _biases(rules: Mapping[str, Any], given: Mapping[str, Any]) -> frozenset[str]:
    flagged = [names for key, names in rules.get("flags", {}).items() if given.get(key)]
    return frozenset([*rules.get("bias", ()), *(name for names in flagged for name in names)])


def _required(given: Mapping[str, Any], key: str, kind: type) -> Any:
    value = given.get(key)
    if not isinstance(value, kind):
        raise ArgumentError(f"the config has no {key!r}", given=dict(given))
    return value
