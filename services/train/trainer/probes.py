"""
Probes: what base and adapter say to a few prompts while the trainer still holds both, so that a server can later prove
that it applies this adapter: greedy tokens, and the log-probability (natural) of each of them given all before it; and
the likeliest first tokens, which are what a replica is asked.
"""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from packing import flatten, forward


@contextmanager
def one_thread_if_small(model):
    """
    Tokens one at a time are small products: to wake a second thread for each costs more than it does, up to a width of about
    a thousand. (SmolLM2-135M with an adapter, 8 prompts, two busy cores: a fifth less time, a third less CPU, the same numbers.)
    """
    threads = torch.get_num_threads()
    if model.device.type == "cpu" and model.config.hidden_size <= 1024:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def greedy(model, prompts: list[list[int]], new_tokens: int, stop: set[int]) -> tuple[list[list[int]], list[list[float]], torch.Tensor]:
    """
    Greedy continuations of all prompts, in one batch: their tokens, the log-probabilities of these, and those of the
    whole vocabulary right after each prompt ([prompts, vocabulary], on the CPU). A stop token ends a continuation and
    belongs to it.
    """
    answers, logprobs, first, cache = [[] for _ in prompts], [[] for _ in prompts], torch.empty(0, 0), None
    if not prompts:
        return answers, logprobs, first
    base, implementation = model.get_base_model(), model.config._attn_implementation
    base.set_attn_implementation("sdpa")  # here prompts are padded on the left, not flattened
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model.eval()
    input_ids = padded

    def forward_once():
        # A tensor, not 1: the slice that 1 makes is not contiguous, and for it the head's weights would be copied per prompt.
        last = torch.tensor([input_ids.shape[1] - 1], device=model.device)
        return model(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=last)

    for step in range(max(1, new_tokens)):
        with nullcontext() if step == 0 else one_thread_if_small(model):
            outputs = forward_once()
        cache = outputs.past_key_values
        distribution = outputs.logits[:, -1].float().log_softmax(-1)
        if step == 0:
            first = distribution.cpu()
        best, chosen = distribution.max(-1)
        for answer, scores, token, score in zip(answers, logprobs, chosen.tolist(), best.tolist(), strict=True):
            if not (answer and answer[-1] in stop):
                answer.append(token)
                scores.append(score)
        if all(answer[-1] in stop for answer in answers):
            break
        input_ids = chosen[:, None]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    base.set_attn_implementation(implementation)
    return answers, logprobs, first


@torch.inference_mode()
def teacher_forced(model, prompts: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
    """The log-probabilities of tokens that another model chose, in one flattened pass."""
    if not any(answers):
        return [[] for _ in answers]
    rows = [
        {
            "input_ids": np.array(prompt + answer, dtype=np.int32),
            "labels": np.array([-100] * len(prompt) + answer, dtype=np.int32),
            "seq_lengths": np.array([len(prompt) + len(answer)]),
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    model.eval()
    outputs, labels = forward(model, flatten(rows))
    chosen = torch.log_softmax(outputs.logits[0].float(), -1).gather(-1, labels[1:, None])[:, 0]
    return [each.tolist() for each in chosen.split([len(answer) for answer in answers])]


def record(model, spec: dict, stop: set[int]):
    """What a model, as it is now, says to the spec's probes."""
    return greedy(model, [probe["input_ids"] for probe in spec["probes"]], spec["probe_tokens"], stop)


def compare(model, spec: dict, base, adapter) -> list[dict]:
    """`probes` of result.json, of what `record` gave with the adapter and without."""
    base_tokens, base_logprobs, base_first = base
    adapter_tokens, adapter_logprobs, adapter_first = adapter
    with model.disable_adapter():
        base_logprobs_of_adapter = teacher_forced(model, [probe["input_ids"] for probe in spec["probes"]], adapter_tokens)
    return [
        {
            "name": probe["name"],
            "input_ids": probe["input_ids"],
            "base": {"tokens": base_tokens[i], "logprobs": base_logprobs[i]},
            "adapter": {"tokens": adapter_tokens[i], "logprobs": adapter_logprobs[i], "base_logprobs": base_logprobs_of_adapter[i]},
            "first": first_tokens(base_first[i], adapter_first[i]),
        }
        for i, probe in enumerate(spec["probes"])
    ]


def first_tokens(base: torch.Tensor, adapter: torch.Tensor, likeliest: int = 32) -> dict:
    """
    What a replica is asked: the likeliest first tokens of base and adapter together, with the logprobs of both. Many, as the
    effect of an adapter that was hardly trained has to be told from rounding; not more than vLLM answers for at once (128).
    """
    likeliest = min(likeliest, len(base))
    tokens = torch.unique(torch.cat([base.topk(likeliest).indices, adapter.topk(likeliest).indices]))
    return {"tokens": tokens.tolist(), "base": base[tokens].tolist(), "adapter": adapter[tokens].tolist()}
