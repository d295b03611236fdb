"""
The memory that training takes on one GPU, reckoned from the base's sizes alone, before anything is loaded. For dense models whose layers are those of Llama, Qwen
or Mistral: attention and a gated MLP, an adapter on all of their linear layers. tests/test_memory.py counts a small model's real tensors, and makes the table of docs/bases.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
HELD = (None, "int8", "nf4")  # values of `quantization`
BLOCK, OUTER_BLOCK = 64, 256  # of NF4; see quantised.py
LOGITS_AT_ONCE = 1 << 26  # numbers; see head.py


@dataclass(frozen=True)
class Sizes:
    """Of a base. queries, keys: width of all heads of queries, and of keys (values are as wide)."""

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool

    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear modules of a layer."""
        h, i = self.hidden, self.intermediate
        return [(h, self.queries), (h, self.keys), (h, self.keys), (self.queries, h), (h, i), (h, i), (i, h)]


def sizes_of(config: dict) -> Sizes | None:
    """Of a config.json; None: it is another kind of model."""
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        head = config.get("head_dim") or hidden // heads
        keys = head * (config.get("num_key_value_heads") or heads)
        tied = bool(config.get("tie_word_embeddings", False))
        return Sizes(config["num_hidden_layers"], hidden, config["intermediate_size"], head * heads, keys, config["vocab_size"], tied)
    except (KeyError, TypeError):
        return None


def base_bytes(sizes: Sizes, quantization: str | None) -> float:
    """Of the base's weights: linear layers as they are held, embeddings, output layer and norms in bf16."""
    weights = sum(inputs * outputs for inputs, outputs in sizes.linear())
    if quantization == "nf4":  # half a byte for a weight, one for 64 of them, four for 64 x 256; and in each module two tables and a mean
        layer = weights / 2 + weights / BLOCK + 4 * weights / BLOCK / OUTER_BLOCK + len(sizes.linear()) * 4 * (16 + 256 + 1)
    elif quantization == "int8":
        layer = weights + 4 * sum(outputs for _, outputs in sizes.linear())
    else:
        layer = 2 * weights
    embeddings = sizes.vocabulary * sizes.hidden * (1 if sizes.tied else 2)
    norms = (2 * sizes.layers + 1) * sizes.hidden
    return sizes.layers * layer + 2 * (embeddings + norms)


def adapter_parameters(sizes: Sizes, rank: int) -> int:
    return sizes.layers * sum(rank * (inputs + outputs) for inputs, outputs in sizes.linear())


def activation_bytes(sizes: Sizes, rank: int, tokens: int, checkpointing: bool, dropout: bool = False) -> float:
    """What the backward pass needs, for all tokens of a forward pass, with autocast to bf16. With checkpointing: each layer's input, and all of one layer."""
    layer = 18 * sizes.hidden + 8 * sizes.intermediate + 10 * sizes.queries + 8 * sizes.keys + 28 * rank
    if dropout:
        layer += 4 * sum(inputs for inputs, _ in sizes.linear())
    kept = sizes.layers * 2 * sizes.hidden + layer if checkpointing else sizes.layers * layer
    return tokens * (kept + 4 * sizes.hidden)  # the last norm's


def training_bytes(sizes: Sizes, *, rank: int, tokens: int, quantization: str | None = None, checkpointing: bool = False, dropout: bool = False) -> float:
    """
    All of it. The adapter is trained in float32: itself, its gradient and AdamW's two averages. Beside the activations: the largest weight
    twice, unpacked, and a part of the logits. Not in it: CUDA itself (half a gigabyte to one), and what the allocator leaves unused.
    """
    unpacked = 0 if quantization is None else 4 * max(inputs * outputs for inputs, outputs in sizes.linear())
    logits = 10 * min(tokens * sizes.vocabulary, LOGITS_AT_ONCE)  # in float32, their gradients, a copy in bf16
    fixed = base_bytes(sizes, quantization) + 16 * adapter_parameters(sizes, rank)
    return fixed + unpacked + logits + activation_bytes(sizes, rank, tokens, checkpointing, dropout)


def in_words(base: Path, *, rank: int, tokens: int | None, dropout: bool = False) -> str:
    """What a person should know who ran out of memory; "" for other kinds of models. tokens: of the largest batch; None: not known, so the base's weights alone."""
    try:
        sizes = sizes_of(json.loads((base / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ""
    if sizes is None:
        return ""
    names = {None: "as it is", "int8": "with quantization int8", "nf4": "with nf4"}
    if tokens is None:
        return f" The base's weights take {', '.join(f'{base_bytes(sizes, held) / GB:.1f} GB {names[held]}' for held in HELD)}."

    def said(sizes: Sizes, tokens: int, checkpointing: bool) -> str:
        found = [(held, training_bytes(sizes, rank=rank, tokens=tokens, quantization=held, checkpointing=checkpointing, dropout=dropout)) for held in HELD]
        return ", ".join(f"{size / GB:.1f} GB {names[held]}" for held, size in found)

    return f" Reckoned for batches of {tokens} tokens: {said(sizes, tokens, False)}; with gradient_checkpointing {said(sizes, tokens, True)}."
