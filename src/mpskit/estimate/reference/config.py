"""Reads a transformer's config into one shape for every family.

What sets families apart stands in ``data/model_families.toml``, shapes of published models, with
their sources, in ``data/model_specs.json``. A key that nothing models is refused or noted.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from mpskit._base.arguments import shown
from mpskit._base.data import read_toml
from mpskit.errors import ArgumentError, ArgumentTypeError

__all__ = ["Lora", "Shape", "model_names", "read_config", "read_lora", "read_shape", "refuse"]

# The end of the class that a config names -> what stands on top of the layers.
_HEADS = {
    "ForCausalLM": "causal",
    "WithLMHeadModel": "generation",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForSequenceClassification": "classes",
    "ForConditionalGeneration": "generation",
    "Model": "none",
}
_MOST = 1 << 30  # no published size comes near it
_MOST_LAYERS = 1024  # each is replayed
_CLASSES = 2  # of a classifier whose config names none, as transformers has it
_DROPOUTS = ("hidden", "embedding", "attention", "inner", "final")
_ROLES = ("query", "key", "value", "out", "gate", "up", "down")
_TABLES = frozenset({"keys", "default"})  # of model_families.toml that are no family


@dataclass(frozen=True)
class Shape:
    """What decides a transformer's memory. Sizes are counts of numbers, not bytes; 0 for none.

    Attributes:
        columns: the family's row of the table, with what the config changes in it.
        layers: layers of each stack; an encoder-decoder has two.
        turned: width of a head's part that rotary positions turn.
        positions: rows of the learned table of positions; ``types`` and ``buckets`` of the tables
            of token types and of relative positions.
        masked: a causal mask is made although SDPA needs none.
        caps: soft caps of attention's scores and of the logits.
        notes: what the figures do not show.
    """

    columns: Mapping[str, Any]
    head: str
    layers: tuple[int, ...]
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    turned: int
    vocabulary: int
    positions: int
    types: int
    experts: int
    experts_each: int
    buckets: int
    labels: int
    activation: str
    tied: bool
    masked: bool
    dropout: Mapping[str, float]
    caps: tuple[float | None, float | None]
    notes: tuple[str, ...]

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest row that the table of positions has; None without a table."""
        return self.positions - self.columns.get("reserved_positions", 0) or None


@dataclass(frozen=True)
class Lora:
    """Adapters: their rank, the roles of the projections that have one, and their dropout."""

    rank: int
    roles: frozenset[str]
    dropout: float = 0.0


def read_shape(config: Mapping[str, Any] | str | Path, *, tokens: int) -> Shape:
    """Return the shape that a config describes.

    Args:
        config: a config as a mapping, the path of a config.json (or its folder), or the name of
            a bundled model such as ``"Qwen/Qwen2.5-0.5B"``.
        tokens: tokens in each row, which the model must have positions for.

    Raises:
        ArgumentError: no such file or model, an unknown family, a missing key, a wrong value, or
            something that is not modelled.
        ArgumentTypeError: ``config`` is something else.
    """
    given = read_config(config)
    text = given.get("text_config")
    if isinstance(text, Mapping) and "hidden_size" not in given:
        given = {**given, **text, "architectures": given.get("architectures")}
    families, family = read_toml("model_families.toml"), given.get("model_type")
    if not isinstance(family, str):
        raise ArgumentError("the config has no 'model_type' that is a name", given=family)
    if family not in families or family in _TABLES:
        known = ", ".join(name for name in families if name not in _TABLES)
        refuse(f"the model_type {_short(family)} is none of {known}", family)
    return _Reader(family, families, given).shape(tokens)


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
    name = str(path)[:200]
    try:
        path = path / "config.json" if path.is_dir() else path
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"{shown(name)} is neither a bundled model ({', '.join(list(_bundled())[:3])}, ...) "
            f"nor a readable config.json: {str(error)[:200]}",
            given=name,
        ) from error
    if not isinstance(read, dict):
        raise ArgumentError(f"{shown(name)} holds no JSON object (config.json)", given=name)
    return read


def refuse(what: str, given: Any) -> NoReturn:
    """Raise the error of a config that is not modelled."""
    raise ArgumentError(
        f"no estimate from this config: {what}; trace the model instead (estimate_training_memory)",
        given=given,
    )


def _short(value: Any) -> str:
    """Return a value as an error shows it; a container only by its type."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return shown(value)[:80] if plain else type(value).__name__


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Reader:
    """One config: a family's own names for keys, the usual ones, the class's defaults."""

    def __init__(self, family: str, table: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        common, row = table["default"], table[family]
        self.family, self.given = family, given
        self.notes: list[str] = []
        self.columns = {**common, **row}
        self.defaults = {**common["defaults"], **row.get("defaults", {})}
        self.names: Mapping[str, str] = row.get("names", {})
        self.seen = set(table["keys"]["harmless"])
        for key, what in table["keys"]["refused"].items():
            if self.value(key):
                refuse(f"it has {what} ({key})", key)
        for key, allowed in row.get("only", {}).items():
            value = self.value(key)
            if value is not None and value not in allowed:
                refuse(f"{key} = {_short(value)}", value)
        for key, change in row.get("when", {}).items():
            if self.flag(key):
                bias = [*self.columns["bias"], *change.get("bias", ())]
                self.columns |= {**change, "bias": bias}

    def value(self, key: str) -> Any:
        """Return a key's value, under the family's name for it or the usual one."""
        name = self.names.get(key, key)
        self.seen |= {name, key}
        found = next((self.given[k] for k in (name, key) if self.given.get(k) is not None), None)
        return self.defaults.get(key) if found is None else found

    def checked(self, key: str, valid: Callable[[Any], bool], what: str, default: Any) -> Any:
        """Return a key's value if it is what it has to be."""
        value, name = self.value(key), self.names.get(key, key)
        value = default if value is None else value
        if value is None:
            raise ArgumentError(f"the config has no {shown(name)}", given=dict(self.given))
        if not valid(value):
            raise ArgumentError(f"{name} is {what}, not {_short(value)}", given=value)
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number; without a default the key must be there."""
        least = 0 if default == 0 else 1
        what = f"a whole number from {least} to 2^30"
        return int(self.checked(key, lambda v: _whole(v) and v >= least, what, default))

    def share(self, key: str, default: float = 0.0) -> float:
        """Return a probability."""
        valid = lambda v: _number(v) and 0 <= v <= 1  # noqa: E731
        return float(self.checked(key, valid, "a number from 0 to 1", default))

    def flag(self, key: str) -> bool:
        """Return a truth value."""
        return bool(self.checked(key, lambda v: isinstance(v, bool), "true or false", False))

    def cap(self, key: str) -> float | None:
        """Return a soft cap; None for none."""
        valid = lambda v: _number(v) and v > 0  # noqa: E731
        found = self.checked(key, valid, "a positive number", float("inf"))
        return None if found == float("inf") else float(found)

    def shape(self, tokens: int) -> Shape:
        """Return all of it."""
        hidden, heads = self.count("hidden_size"), self.count("num_attention_heads")
        activation = self._activation()
        width = self.count("head_dim", max(hidden // heads, 1))
        shared = self.columns["projection"] == "multi-query"
        kv_heads = 1 if shared else self.count("num_key_value_heads", heads)
        if heads % kv_heads:
            raise ArgumentError(
                f"{heads} attention heads are no multiple of {kv_heads} key-value heads",
                given=kv_heads,
            )
        multiple = self.columns.get("inner")
        found: dict[str, Any] = {
            "head": self._head(),
            "layers": self._layers(),
            "inner": self.count("intermediate_size", multiple and multiple * hidden),
            "turned": self._turned(width),
            "vocabulary": self.count("vocab_size"),
            "positions": self._positions(tokens),
            "types": self.count("type_vocab_size", 0),
            "experts": self.count("num_local_experts", 0),
            "experts_each": self.count("num_experts_per_tok", 0),
            "buckets": self.count("relative_attention_num_buckets", 0),
            "labels": self._labels(),
            "tied": self.flag("tie_word_embeddings"),
            "masked": self._windowed(tokens) or self.columns["masked"],
            "dropout": {place: self.share(f"{place}_dropout") for place in _DROPOUTS},
            "caps": (self.cap("attn_logit_softcapping"), self.cap("final_logit_softcapping")),
        }
        unknown = sorted(str(key)[:40] for key in self.given if key not in self.seen)
        if unknown:
            self.notes.append(
                f"keys of the config that are not modelled: {', '.join(unknown[:20])}"
            )
        return Shape(
            columns=self.columns,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_width=width,
            activation=activation,
            notes=tuple(self.notes),
            **found,
        )

    def _head(self) -> str:
        """Read what stands on top from the class that the config names."""
        allowed, named = self.columns["heads"], self.given.get("architectures") or []
        if not isinstance(named, list | tuple) or not all(isinstance(n, str) for n in named):
            raise ArgumentError("architectures is a list of names of classes", given=named)
        if not named:
            return str(allowed[-1])
        head = next((head for end, head in _HEADS.items() if named[0].endswith(end)), None)
        if head is None or head not in allowed:
            refuse(f"{_short(named[0])} is no class of {self.family} that is modelled", named[0])
        return head

    def _activation(self) -> str:
        value = str(self.checked("hidden_act", lambda v: isinstance(v, str), "a name", None))
        gate, _, name = value.rpartition("-")  # T5's "gated-gelu" is the one of GPT-2
        if gate != "gated":
            return value
        self.columns["mlp"] = "gated"
        return {"gelu": "gelu_new"}.get(name, name)

    def _layers(self) -> tuple[int, ...]:
        layers = [self.count("num_hidden_layers")]
        if self.columns["stacks"] == "encoder-decoder":
            layers.append(self.count("num_decoder_layers", layers[0]))
        if max(layers) > _MOST_LAYERS:
            refuse(f"{max(layers)} layers are more than {_MOST_LAYERS}", layers)
        return tuple(layers)

    def _turned(self, width: int) -> int:
        """Return how much of a head rotary positions turn."""
        key = "partial_rotary_factor"
        nested = self.given.get("rope_parameters") or self.given.get("rope_scaling")
        if isinstance(nested, Mapping) and nested.get(key) is not None:
            self.given = {**self.given, key: nested[key]}
        return max(int(width * self.share(key, 1.0)) // 2 * 2, 2)

    def _positions(self, tokens: int) -> int:
        """Return the rows of the table of positions; note a sequence that is longer."""
        most = self.count("max_position_embeddings", 0)
        if self.columns["positions"] not in {"learned", "counted"}:
            if 0 < most < tokens:
                self.notes.append(f"{tokens} tokens are more than the {most} that it was made for")
            return 0
        rows = most + int(self.columns.get("extra_positions", 0))
        usable = rows - self.columns.get("reserved_positions", 0)
        if tokens > usable:
            raise ArgumentError(
                f"seq_len: {tokens} tokens are more than the model's {usable} positions",
                given=tokens,
            )
        return rows

    def _windowed(self, tokens: int) -> bool:
        """Return whether a sliding window is shorter than the sequence; then it needs a mask."""
        used, window = self.flag("use_sliding_window"), self.count("sliding_window", 0)
        mixed = self.value("sliding_window_pattern") or self.value("max_window_layers")
        kinds = self.value("layer_types")
        if isinstance(kinds, list):
            used = "sliding_attention" in kinds
            mixed = any(kind != kinds[0] for kind in kinds)
        if used and mixed and 0 < window <= tokens:
            refuse(f"some layers see {window} of {tokens} tokens (sliding_window)", window)
        return used and 0 < window <= tokens

    def _labels(self) -> int:
        labels = self.given.get("id2label")
        if isinstance(labels, Mapping) and labels:
            return len(labels)
        return self.count("num_labels", _CLASSES)


def read_lora(shape: Shape, lora: Any) -> Lora | None:
    """Return the adapters that an argument asks for, as ``estimate_from_config`` takes it."""
    if lora is None:
        return None
    lora = {"rank": lora} if isinstance(lora, int) else lora
    if not isinstance(lora, Mapping):
        raise ArgumentTypeError(f"lora is a rank or a mapping, not {_short(lora)}", given=lora)
    rank = lora.get("rank", lora.get("r"))
    if not _whole(rank) or rank < 1:
        raise ArgumentError(f"lora has no 'rank' of at least 1: {_short(rank)}", given=rank)
    names = dict(zip(_ROLES, shape.columns["roles"], strict=True))
    known = {name for name in names.values() if name}
    given = lora.get("targets", lora.get("target_modules"))
    targets = {None: [names["query"], names["value"]], "all-linear": known}.get(
        given if isinstance(given, str | None) else "", [given] if isinstance(given, str) else given
    )
    try:
        chosen = frozenset(targets or ())
    except TypeError as error:
        raise ArgumentTypeError("lora targets are names of modules", given=given) from error
    if not chosen or not chosen <= known:
        raise ArgumentError(
            f"lora targets {sorted(map(str, chosen))} are not all among {', '.join(sorted(known))}",
            given=given,
        )
    dropout = lora.get("dropout", lora.get("lora_dropout", 0.0))
    if not _number(dropout) or not 0 <= dropout < 1:
        raise ArgumentError(
            f"lora dropout is a number from 0 to below 1, not {_short(dropout)}", given=dropout
        )
    roles = frozenset(role for role, name in names.items() if name in chosen)
    return Lora(rank, roles, float(dropout))
