"""
The output head and what is made of its logits, in chunks of tokens, so that memory does not grow with the tokens of a batch: the logits of
16,384 tokens over a vocabulary of 150,000 would take 10 GB, and several times that with their gradients.

A small batch goes through the model as a whole. For a large one the model runs with its head taken out. Then the head runs on one chunk
after the other, and in the backward pass again. Where a base does more to its logits than its head does (Gemma 2 caps them, Granite
scales them), `prove_head` finds out, and its batches stay whole.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE: int = 1 << 26  # 0.25 GiB in float32; their gradients and a copy in bf16 come to that

# From logits [tokens, vocabulary] in float32 and expected tokens [tokens] to one or several tensors.
OfChunk = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


def head_of(model) -> Any:
    return getattr(model, "module", model).get_output_embeddings()


def of_logits(model, batch: dict, labels: torch.Tensor, of_chunk: OfChunk) -> list[tuple[torch.Tensor, ...]]:
    """Runs the model on a flattened batch without its labels. Returns what `of_chunk` says of each chunk of its supervised tokens, in order."""
    if not is_large(model, len(labels)) or not getattr(head_of(model), "is_all", False):
        return [of_chunk(model(**batch).logits[0].float(), labels)]
    return in_chunks(model, batch, labels, of_chunk, max(1, LOGITS_AT_ONCE // head_of(model).weight.shape[0]))


def is_large(model, tokens: int) -> bool:
    """Whether the logits of so many tokens are too many to be held at once."""
    head = head_of(model)
    return head is not None and tokens * head.weight.shape[0] > LOGITS_AT_ONCE


def in_chunks(model, batch: dict, labels: torch.Tensor, of_chunk: OfChunk, tokens: int) -> list[tuple[torch.Tensor, ...]]:
    head, cast = head_of(model), nullcontext

    def instead(hidden):
        nonlocal cast
        kind, enabled = hidden.device.type, torch.is_autocast_enabled(hidden.device.type)
        dtype = torch.get_autocast_dtype(kind)
        cast = lambda: torch.autocast(kind, dtype, enabled=enabled)  # noqa: E731  as it is inside the model, where the head would run
        return hidden

    head.forward = instead
    try:
        hidden = model(**batch).logits[0]
    finally:
        del head.forward

    def chunk(hidden, labels):
        with cast():
            logits = head.forward(hidden.to(head.weight.dtype))  # without hooks: FSDP's would transfer once for each chunk
        return of_chunk(logits.float(), labels)

    parts = zip(hidden.split(tokens), labels.split(tokens), strict=True)
    if not hidden.requires_grad:
        return [chunk(*part) for part in parts]
    return [checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]


@torch.no_grad()
def prove_head(model, batch: dict, labels: torch.Tensor) -> bool:
    """Whether the head alone gives the model's logits, on a small batch. Notes it, so that larger batches go in chunks."""
    collect: OfChunk = lambda logits, _: (logits,)  # noqa: E731
    whole = model(**batch).logits[0].float()
    alone = torch.cat([logits for (logits,) in in_chunks(model, batch, labels, collect, max(1, len(labels) // 2))])
    # In bf16 rounding depends on the shapes of the products.
    close = torch.allclose(whole, alone, rtol=0, atol=1e-3 * max(1.0, float(whole.abs().max())) * (1 if model.dtype == torch.float32 else 20))
    head_of(model).is_all = close
    return close
