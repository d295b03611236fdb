"""
Attention of packed rows: causal, within each sequence, with the base's own sliding windows, soft caps and sinks.

A batch is one row of tokens with all its sequences one after the other. On a GPU one kernel for sequences of any lengths does them all
(torch.nn.attention.varlen), once it has given the same numbers as the loop below on a small example; on a CPU, and wherever it cannot,
each sequence is attended to by itself, which is exact and needs no mask of tokens x tokens over the whole row.

An argument that would change the result and is not known here is refused: a base must not be trained with another attention than it has.
"""

from functools import cache
from itertools import pairwise

import torch
from spec import TrainerError
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

NAME = "by_sequence"
# They name what is known otherwise (where sequences are, that attention is causal), or ask for what training does not use.
WITHOUT_EFFECT = {"position_ids", "cu_seq_lens_k", "max_length_k", "use_cache", "cache_position", "return_dict"}


def attend_by_sequence(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    float32_attention: bool = False,
    **others,
):
    """
    query [1, heads, tokens, size], key and value [1, key heads, tokens, size]; returns [1, tokens, heads, size] and None, as transformers'
    attention functions do. sliding_window: tokens that a token sees, itself among them. softcap: scores are capped * tanh(scores / capped).
    s_aux: attention sinks, a score [heads] that takes its share and has no value. float32_attention: on a CPU in float32 without
    gradients, too, so that passes with and without gradients give the same numbers. Raises ATTENTION_UNSUPPORTED.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        raise ValueError("attend_by_sequence needs cu_seq_lens_q and no mask: anything else would let sequences see each other")
    # `output_…` asks a model for more results, and whatever is False is off.
    changing = {name for name, given in others.items() if given is not None and given is not False and not name.startswith("output_")}
    unknown = sorted(changing - WITHOUT_EFFECT)
    if unknown or is_causal is False:
        what = "attention to later tokens" if is_causal is False else ", ".join(unknown)
        raise TrainerError("ATTENTION_UNSUPPORTED", f"{type(module).__name__} of this base needs {what}, which this trainer does not have.", "base")
    dtype = query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_plain = softcap is not None or s_aux is not None
    window = sliding_window if max_length_q is None or (sliding_window or 0) < max_length_q else None

    if query.device.type == "cuda" and not is_plain and not dropout and varlen_works(query.device, dtype, query.shape[1], key.shape[1], query.shape[-1]):
        return attend_at_once(query, key, value, cu_seq_lens_q, max_length_q, scale, window), None

    if query.device.type == "cpu" and (query.requires_grad or float32_attention):  # on a CPU the backward pass is three times slower in bf16 than in fp32
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    # Split, not sliced: the gradient of a slice is as large as the whole, with zeros for all others.
    lengths = cu_seq_lens_q.diff().tolist()
    for length, *part in zip(lengths, *(each.split(lengths, dim=2) for each in (query, key, value)), strict=True):
        mask = mask_of(length, window, query.device)
        with torch.autocast(query.device.type, enabled=False):
            if is_plain:
                output = attend_plainly(*part, mask, scale, dropout, softcap, s_aux)
            else:
                windowed = mask if window is not None and length > window else None
                output, _ = sdpa_attention_forward(module, *part, windowed, dropout=dropout, scaling=scale)
        outputs.append(output)
    return torch.cat(outputs, dim=1).to(dtype), None


def mask_of(tokens: int, window: int | None, device) -> torch.Tensor:
    """Which token sees which: bool [1, 1, tokens, tokens]."""
    age = torch.arange(tokens, device=device)
    age = age[:, None] - age[None, :]
    seen = age >= 0 if window is None else (age >= 0) & (age < window)
    return seen[None, None]


def attend_plainly(query, key, value, mask, scale: float, dropout: float, softcap: float | None, sinks: torch.Tensor | None) -> torch.Tensor:
    """Attention as it is written down, for what torch's kernels do not have. Shapes as in `attend_by_sequence`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.float().masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    weights = torch.nn.functional.dropout(weights, dropout).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2)


def attend_at_once(query, key, value, bounds, longest: int | None, scale: float, window: int | None) -> torch.Tensor:
    """All sequences by one kernel of the GPU. Shapes as in `attend_by_sequence`."""
    from torch.nn.attention.varlen import varlen_attn

    longest = int(bounds.diff().max()) if longest is None else longest
    rows = [each[0].transpose(0, 1).contiguous() for each in (query, key, value)]  # [tokens, heads, size]
    seen = (-1 if window is None else window - 1, 0)  # tokens before and after
    output = varlen_attn(*rows, bounds, bounds, longest, longest, scale=scale, window_size=seen, enable_gqa=query.shape[1] != key.shape[1])
    assert isinstance(output, torch.Tensor)
    return output[None]


@cache
def varlen_works(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> bool:
    """
    Whether the kernel runs here and gives, forwards and backwards, what the loop gives. Older GPUs, float32 and some head sizes have none.
    It is asked once for each shape, by an example of two sequences, with and without a window.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    generator = torch.Generator(device).manual_seed(0)
    bounds, window = torch.tensor([0, 7, 40], dtype=torch.int32, device=device), 5
    try:
        for seen in (None, window):
            given = [torch.randn(1, count, 40, size, device=device, generator=generator).to(dtype).requires_grad_() for count in (heads, key_heads, key_heads)]
            results = []
            for attend in (attend_at_once, attend_one_by_one):
                output = attend(*given, bounds, 33, size**-0.5, seen)
                gradients = torch.autograd.grad(output.float().square().sum(), given)
                results.append([output, *gradients])
            for ours, theirs in zip(*results, strict=True):
                if not (ours.float() - theirs.float()).abs().max() <= 0.03 * theirs.float().abs().max():
                    return False
    except (RuntimeError, ValueError, NotImplementedError, ImportError):
        return False
    return True


def attend_one_by_one(query, key, value, bounds, longest, scale: float, window: int | None) -> torch.Tensor:
    """What `attend_at_once` must equal."""
    parts = [slice(start, end) for start, end in pairwise(bounds.tolist())]
    outputs = [
        attend_plainly(query[:, :, part], key[:, :, part], value[:, :, part], mask_of(part.stop - part.start, window, query.device), scale, 0.0, None, None)
        for part in parts
    ]
    return torch.cat(outputs, dim=1)


def use(model, name: str) -> None:
    """
    Sets the attention of a model: NAME, or one of transformers'. A vision tower always gets transformers' own: its patches see each
    other within a picture, whatever the rows are.
    """
    model.set_attn_implementation(name)
    decoder = model.get_decoder()
    inner = set(map(id, decoder.modules()))
    for module in model.modules():
        is_around = any(each is decoder for each in module.modules())
        if isinstance(module, PreTrainedModel) and not is_around and id(module) not in inner:
            module.config._attn_implementation = "sdpa"


def recur_by_sequence(model) -> None:
    """
    Makes the recurrent layers of a model (Qwen3.5's and Qwen3-Next's gated delta nets) begin anew at each sequence of a flattened batch.
    transformers' own reference implementation of them takes no notice of where sequences begin.
    """

    def apart(forward):
        def each(hidden_states, cu_seq_lens_q=None, **kwargs):
            if cu_seq_lens_q is None:
                return forward(hidden_states=hidden_states, **kwargs)
            others = {name: value for name, value in kwargs.items() if not name.startswith(("cu_seq_lens", "max_length", "position_ids"))}
            return torch.cat([forward(hidden_states=hidden_states[:, start:end], **others) for start, end in pairwise(cu_seq_lens_q.tolist())], dim=1)

        return each

    for module in model.modules():
        if type(module).__name__.endswith("GatedDeltaNet"):
            module.forward = apart(module.forward)


AttentionInterface.register(NAME, attend_by_sequence)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
