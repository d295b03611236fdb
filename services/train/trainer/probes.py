"""
Probes: what base and adapter say to a few prompts while the trainer still holds both, so that a server can later prove
that it applies this adapter. Greedy tokens, and the log-probability (natural) of each of them, teacher-forced: one pass
over prompt and tokens, as a server can repeat it.
"""

import numpy as np
import torch

from packing import flatten, forward


@torch.no_grad()
def greedy(model, prompts: list[list[int]], new_tokens: int, stop: set[int]) -> list[list[int]]:
    """Greedy continuations of all prompts, in one batch. A stop token ends a continuation and belongs to it."""
    if not prompts or new_tokens < 1:
        return [[] for _ in prompts]
    base, implementation = model.get_base_model(), model.config._attn_implementation
    base.set_attn_implementation("sdpa")  # here prompts are padded on the left, not flattened
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model.eval()
    answers, cache = [[] for _ in prompts], None
    input_ids = padded
    for _ in range(new_tokens):
        outputs = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = outputs.past_key_values
        chosen = outputs.logits[:, -1].argmax(-1)
        for answer, token in zip(answers, chosen.tolist()):
            if not (answer and answer[-1] in stop):
                answer.append(token)
        if all(answer[-1] in stop for answer in answers):
            break
        input_ids = chosen[:, None]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    base.set_attn_implementation(implementation)
    return answers


@torch.no_grad()
def logprobs(model, prompts: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
    """log P(token | prompt and the tokens before it) for every token of every answer, in one flattened pass."""
    if not any(answers):
        return [[] for _ in answers]
    rows = [
        {
            "input_ids": np.array(prompt + answer, dtype=np.int32),
            "labels": np.array([-100] * len(prompt) + answer, dtype=np.int32),
            "seq_lengths": np.array([len(prompt) + len(answer)]),
        }
        for prompt, answer in zip(prompts, answers)
    ]
    model.eval()
    outputs, labels = forward(model, flatten(rows))
    chosen = torch.log_softmax(outputs.logits[0].float(), -1).gather(-1, labels[1:, None])[:, 0]
    return [each.tolist() for each in chosen.split([len(answer) for answer in answers])]


@torch.no_grad()
def after_prompt(model, prompts: list[list[int]]) -> torch.Tensor:
    """Logprobs of the whole vocabulary right after each prompt: [prompts, vocabulary], float32 on the CPU."""
    if not prompts:
        return torch.empty(0, 0)
    rows = [
        # Logits come where a supervised token is predicted, so each prompt is followed by one; which one is all the same.
        {
            "input_ids": np.array([*prompt, prompt[-1]], dtype=np.int32),
            "labels": np.array([-100] * len(prompt) + [prompt[-1]], dtype=np.int32),
            "seq_lengths": np.array([len(prompt) + 1]),
        }
        for prompt in prompts
    ]
    model.eval()
    outputs, _ = forward(model, flatten(rows))
    return torch.log_softmax(outputs.logits[0].float(), -1).cpu()


def first_tokens(base: torch.Tensor, adapter: torch.Tensor, likeliest: int = 8) -> dict:
    """What a replica is asked: the likeliest first tokens of base and adapter together, with the logprobs of both."""
    tokens = torch.unique(torch.cat([base.topk(likeliest).indices, adapter.topk(likeliest).indices]))
    return {"tokens": tokens.tolist(), "base": base[tokens].tolist(), "adapter": adapter[tokens].tolist()}
