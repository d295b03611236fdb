"""
Probes: what base and adapter answer to a few prompts, recorded while the trainer holds both. A server can later prove with them
that it applies this adapter. Recorded are greedy tokens, the natural log-probability of each token given all tokens before it,
and the likeliest first tokens. Replicas are asked for the first tokens.
"""

import base64
from contextlib import contextmanager, nullcontext

import attention
import numpy as np
import pictures
import torch
import unpack
from language_model import text_config
from packing import flatten, inputs_of
from spec import TrainerError


@contextmanager
def one_thread_if_small(model):
    """
    Generating one token at a time means small products. Up to a width of about a thousand, waking a second thread for each costs
    more time than the thread saves. (Measured: SmolLM2-135M with an adapter, 8 prompts, two busy cores: one thread takes a fifth
    less time and a third less CPU for the same numbers.)
    """
    threads = torch.get_num_threads()
    if model.device.type == "cpu" and text_config(model).hidden_size <= 1024:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Of a picture in a probe: the evidence holds it, and each replica is sent it. A probe with a larger one is left out; others prove.
LARGEST_PICTURE = 1024 * 1024


def find_pictures(spec: dict, album: pictures.Album) -> None:
    """
    Puts the pictures into those of the spec's probes that show some, as `shown`, and into their `messages` as data URLs, which is how a
    replica is asked. Leaves out what cannot be asked so. Raises SHARD_INVALID, PICTURE_UNREADABLE
    """
    kept = []
    for probe in spec["probes"]:
        try:
            probe["shown"] = [album.picture(digest) for digest in probe.get("pictures") or []]
        except ValueError as error:
            raise TrainerError("SHARD_INVALID", f"probe {probe['name']}: {error}", "probes") from error
        if not probe["shown"]:
            kept.append(probe)
        elif probe.get("messages") and all(album.path_of(digest).stat().st_size <= LARGEST_PICTURE for digest in probe["pictures"]):
            kept.append(probe)
            for part in (part for message in probe["messages"] for part in message["content"]):
                if part["type"] == "image":
                    part["url"] = data_url(album.path_of(part["digest"]).read_bytes())
    spec["probes"] = kept


def data_url(content: bytes) -> str:
    from io import BytesIO

    from PIL import Image

    kind = Image.open(BytesIO(content)).get_format_mimetype()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def as_asked(messages: list[dict]) -> list[dict]:
    """Messages as OpenAI's API takes them."""
    parts = {"text": lambda part: {"type": "text", "text": part["text"]}, "image": lambda part: {"type": "image_url", "image_url": {"url": part["url"]}}}
    return [{"role": message["role"], "content": [parts[part["type"]](part) for part in message["content"]]} for message in messages]


@torch.inference_mode()
def greedy(
    model, prompts: list[list[int]], new_tokens: int, stop: set[int], shown: list[list] | None = None
) -> tuple[list[list[int]], list[list[float]], torch.Tensor]:
    """
    Continues all prompts greedily in one batch. Returns the tokens, their log-probabilities, and the log-probabilities of
    the whole vocabulary right after each prompt ([prompts, vocabulary], on the CPU). A stop token ends a continuation and
    is part of it. shown: the pictures of each prompt.
    """
    answers, logprobs, first, cache = [[] for _ in prompts], [[] for _ in prompts], torch.empty(0, 0), None
    if not prompts:
        return answers, logprobs, first
    base, implementation = model.get_base_model(), model.config._attn_implementation
    attention.use(base, "sdpa")  # here prompts are padded on the left, not flattened
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model.eval()
    input_ids = padded
    seen = pictures.inputs_of([picture for each in shown or [] for picture in each], np.concatenate(prompts))
    seen = {name: value.to(model.device) for name, value in seen.items()}

    def forward_once():
        # A tensor and not the number 1: 1 makes a slice that is not contiguous, and then the head's weights are copied for every prompt.
        last = torch.tensor([input_ids.shape[1] - 1], device=model.device)
        given = seen if cache is None else {}
        return model(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=last, **given)

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
    attention.use(base, implementation)
    return answers, logprobs, first


@torch.inference_mode()
def teacher_forced(model, prompts: list[list[int]], answers: list[list[int]], shown: list[list]) -> list[list[float]]:
    """Returns the log-probabilities that this model gives to tokens that another model chose, in one flattened pass."""
    if not any(answers):
        return [[] for _ in answers]
    rows = [
        {
            "input_ids": np.array(prompt + answer, dtype=np.int32),
            "labels": np.array([-100] * len(prompt) + answer, dtype=np.int32),
            "seq_lengths": np.array([len(prompt) + len(answer)]),
            "pictures": pictures_of,
        }
        for prompt, answer, pictures_of in zip(prompts, answers, shown, strict=True)
    ]
    model.eval()
    inputs, labels = inputs_of(model, flatten(rows))
    chosen = torch.log_softmax(model(**inputs).logits[0].float(), -1).gather(-1, labels[:, None])[:, 0]
    return [each.tolist() for each in chosen.split([len(answer) for answer in answers])]


def record(model, spec: dict, stop: set[int]):
    """Records the answers of a model, in its current state, to the spec's probe prompts."""
    return greedy(model, [probe["input_ids"] for probe in spec["probes"]], spec["probe_tokens"], stop, shown_in(spec))


def shown_in(spec: dict) -> list[list]:
    """The pictures of each probe."""
    return [probe.get("shown", []) for probe in spec["probes"]]


def compare(model, spec: dict, base, adapter) -> list[dict]:
    """Returns `probes` of result.json, from what `record` returned with the adapter and without it."""
    base_tokens, base_logprobs, base_first = base
    adapter_tokens, adapter_logprobs, adapter_first = adapter
    with model.disable_adapter():
        base_logprobs_of_adapter = teacher_forced(model, [probe["input_ids"] for probe in spec["probes"]], adapter_tokens, shown_in(spec))
    return [
        {
            "name": probe["name"],
            "input_ids": probe["input_ids"],
            "base": {"tokens": base_tokens[i], "logprobs": base_logprobs[i]},
            "adapter": {"tokens": adapter_tokens[i], "logprobs": adapter_logprobs[i], "base_logprobs": base_logprobs_of_adapter[i]},
            "first": first_tokens(base_first[i], adapter_first[i]),
            **({"messages": as_asked(probe["messages"])} if probe.get("shown") else {}),
        }
        for i, probe in enumerate(spec["probes"])
    ]


def compare_first(spec: dict, base, adapter) -> list[dict]:
    """As `compare`, of the first token after each prompt alone: what the base thinks of it is known without another pass."""
    (base_tokens, base_logprobs, base_first), (tokens, logprobs, first) = base, adapter
    return [
        {
            "name": probe["name"],
            "input_ids": probe["input_ids"],
            "base": {"tokens": base_tokens[i][:1], "logprobs": base_logprobs[i][:1]},
            "adapter": {"tokens": tokens[i][:1], "logprobs": logprobs[i][:1], "base_logprobs": base_first[i][tokens[i][:1]].tolist()},
            "first": first_tokens(base_first[i], first[i]),
        }
        for i, probe in enumerate(spec["probes"])
    ]


def on_twins(model, spec: dict, directory, stop: set[int]) -> list[dict]:
    """
    Returns `twins` of result.json: the probes once more with the weights of each quantised base of the spec that can be unpacked, and whose
    weights have the names that this model's have. The model keeps the last one's weights, so nothing else must be asked of it afterwards.
    """
    found, replaced = [], {}
    for twin in spec["twins"]:
        base = directory / twin["path"]
        packing = unpack.packing_of(base)
        own = {name: weight for name in unpack.packed_names(base) if (weight := weight_of(model, name)) is not None}
        if packing is None or own.keys() != set(unpack.packed_names(base)):
            continue
        for weight, original in replaced.values():
            weight.data.copy_(original)
        for name, values in unpack.packed_weights(base, packing):
            weight = own[name]
            replaced.setdefault(name, (weight, weight.data.cpu().clone() if len(spec["twins"]) > 1 else None))
            weight.data.copy_(values)
        asked = spec | {"probe_tokens": 1}
        with model.disable_adapter():
            without = record(model, asked, stop)
        found.append({"base": twin["digest"], "probes": compare(model, asked, without, record(model, asked, stop))})
    return found


def weight_of(model, name: str) -> torch.nn.Parameter | None:
    """The base's own weight of this name, within the PEFT model."""
    try:
        module = model.get_base_model().get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        return None
    return getattr(module, "base_layer", module).weight


def first_tokens(base: torch.Tensor, adapter: torch.Tensor, likeliest: int = 32) -> dict:
    """
    The question to a replica: the likeliest first tokens of base and adapter together, with the logprobs of both. There are many,
    because the effect of an adapter that was hardly trained must be distinguished from rounding; but no more than vLLM answers
    in one request (128).
    """
    likeliest = min(likeliest, len(base))
    tokens = torch.unique(torch.cat([base.topk(likeliest).indices, adapter.topk(likeliest).indices]))
    return {"tokens": tokens.tolist(), "base": base[tokens].tolist(), "adapter": adapter[tokens].tolist()}
