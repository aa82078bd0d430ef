"""How large a model is, known without loading it and without a network.

From its own config.json where that is at hand, else from a table of published shapes by name
(`model_shapes.toml`), else from the size its name says; else it is unknown, and said to be.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from serve.models import reference_bytes

TABLE = Path(__file__).with_suffix(".toml")
NAMED_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![a-zA-Z0-9])", re.IGNORECASE)
# Bits a weight by what a name says of it: AWQ and GPTQ carry a scale and a zero a group of 128.
NAMED_BITS = {"awq": 4.5, "gptq": 4.5, "int4": 4.5, "4bit": 4.5, "fp8": 8.0, "int8": 8.5}
PLAIN_BITS = 16.0


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped attention and a gated feed-forward part."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Weights in all, biases and norms within a layer left out (below 0.1 %)."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied with: an input embedding is looked up."""
        return self.parameters - (0 if self.tied else self.vocabulary * self.hidden)

    def kv_bytes(self, number_bytes: int = 2) -> int:
        """Of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * number_bytes


@dataclass(frozen=True)
class Model:
    """What is known of a model: `shape` is None where only its size is, 0 where nothing is."""

    name: str
    parameters: int
    bits: float
    shape: Shape | None = None

    @property
    def multiplied(self) -> int:
        return self.shape.multiplied if self.shape else self.parameters

    @property
    def weights_bytes(self) -> float:
        """Of its checkpoint. AWQ, GPTQ and FP8 leave embedding and head at 16 bits."""
        ends = 0
        if self.shape and self.bits in NAMED_BITS.values():
            ends = self.shape.vocabulary * self.shape.hidden * (1 if self.shape.tied else 2)
        return ((self.parameters - ends) * self.bits + ends * PLAIN_BITS) / 8


def model_at(reference: str) -> Model:
    """Of a model reference, or of the name a server calls it by. Never asks a hub."""
    name = reference.partition(":")[2] or reference
    if reference.startswith("wheel:"):
        name = max(name.split("/"), key=lambda part: shape_named(part) is not None)
    else:
        name = name.partition("@")[0].rstrip("/").rpartition("/")[2]
    shape = _local(reference) or shape_named(name)
    size = shape.parameters if shape else _named_size(name)
    bits = next((b for sign, b in NAMED_BITS.items() if sign in name.lower()), PLAIN_BITS)
    # A server's name for its model is no reference.
    found = reference_bytes(reference) if reference.startswith(("path:", "wheel:")) else 0
    return Model(name, size, 8 * found / size if found and size else bits, shape)


@cache
def known() -> dict[str, dict[str, Any]]:
    """The table: name -> its entry."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def shape_named(name: str) -> Shape | None:
    """The table's longest entry that `name` begins with, if the name goes no further with it."""
    wanted = name.lower()
    found = [
        (len(beginning), entry)
        for title, entry in known().items()
        for beginning in (title, *entry.get("aliases", ()))
        if re.match(re.escape(beginning.lower()) + r"(?![a-z0-9.])", wanted)
    ]
    if not found:
        return None
    entry = max(found, key=lambda pair: pair[0])[1]
    return Shape(**{field: entry[field] for field in Shape.__dataclass_fields__})


def _local(reference: str) -> Shape | None:
    kind, _, rest = reference.partition(":")
    config: str | Path | None = None
    if kind == "path":
        config = Path(rest).expanduser() / "config.json"
    elif kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        name, _, revision = rest.partition("@")
        found = try_to_load_from_cache(name, "config.json", revision=revision or None)
        config = found if isinstance(found, str) else None
    if config is None or not Path(config).is_file():
        return None
    try:
        return _of_config(json.loads(Path(config).read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError):  # another architecture: its name may say more
        return None


def _of_config(config: dict[str, Any]) -> Shape:
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _named_size(name: str) -> int:
    found = NAMED_SIZE.search(name.replace("-", " ").replace("_", " "))
    if not found:
        return 0
    return round(float(found[1]) * (1e9 if found[2].upper() == "B" else 1e6))
