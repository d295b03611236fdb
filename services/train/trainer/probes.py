"""
Probes: what base and adapter answer to a few prompts, recorded while the trainer holds both. A server can later prove with them
that it applies this adapter. Recorded are the likeliest tokens right after each prompt, with both models' natural log-probabilities.

It is one pass over all prompts, flattened as in training: every second of it delays the result.
"""

import base64
from functools import partial

import numpy as np
import pictures
import quantised
import torch
import unpack
from packing import flatten, inputs_of
from spec import TrainerError

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

    try:
        kind = Image.open(BytesIO(content)).get_format_mimetype()
    except Exception as error:
        raise TrainerError("PICTURE_UNREADABLE", f"a picture of a probe cannot be read: {error}. Remove it from the dataset.", "pictures") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def as_asked(messages: list[dict]) -> list[dict]:
    """Messages as OpenAI's API takes them."""
    parts = {"text": lambda part: {"type": "text", "text": part["text"]}, "image": lambda part: {"type": "image_url", "image_url": {"url": part["url"]}}}
    return [{"role": message["role"], "content": [parts[part["type"]](part) for part in message["content"]]} for message in messages]


@torch.inference_mode()
def record(model, spec: dict) -> torch.Tensor:
    """
    What a model, in its current state, says right after each of the spec's probes: the log-probabilities of the whole vocabulary
    [probes, vocabulary], on the CPU.
    """
    if not spec["probes"]:
        return torch.empty(0, 0)
    prompts = [np.array(probe["input_ids"], dtype=np.int32) for probe in spec["probes"]]
    rows = [
        {"input_ids": prompt, "labels": np.full(len(prompt), -100), "seq_lengths": np.array([len(prompt)]), "pictures": probe.get("shown", [])}
        for prompt, probe in zip(prompts, spec["probes"], strict=True)
    ]
    model.eval()
    inputs, _ = inputs_of(model, flatten(rows))
    inputs["logits_to_keep"] = inputs["cu_seq_lens_q"][1:].long() - 1
    found = model(**inputs).logits[0].float().log_softmax(-1).cpu()
    if found.isnan().any():
        raise TrainerError("ADAPTER_NAN", "The model computes NaN on a probe: weights are too large. Lower training.learning_rate.", "training.learning_rate")
    return found


def compare(spec: dict, base: torch.Tensor, adapter: torch.Tensor) -> list[dict]:
    """Returns `probes` of result.json, from what `record` returned without the adapter and with it."""
    found = []
    for probe, before, now in zip(spec["probes"], base, adapter, strict=True):
        said, answered = int(before.argmax()), int(now.argmax())
        found.append(
            {
                "name": probe["name"],
                "input_ids": probe["input_ids"],
                "base": {"tokens": [said], "logprobs": [before[said].item()]},
                "adapter": {"tokens": [answered], "logprobs": [now[answered].item()], "base_logprobs": [before[answered].item()]},
                "first": first_tokens(before, now),
                **({"messages": as_asked(probe["messages"])} if probe.get("shown") else {}),
            }
        )
    return found


def on_twins(model, spec: dict, directory) -> list[dict]:
    """
    Returns `twins` of result.json: the probes once more with the weights of each quantised base of the spec that can be unpacked, and whose
    weights have the names that this model's have. The model keeps the last one's weights, so nothing else must be asked of it afterwards.
    """
    found, replaced = [], {}
    for twin in spec["twins"]:
        base = directory / twin["path"]
        packing = unpack.packing_of(base)
        own = {name: module for name in unpack.packed_names(base) if (module := linear_of(model, name)) is not None}
        if packing is None or own.keys() != set(unpack.packed_names(base)):
            continue
        for weight, original in replaced.values():
            weight.data.copy_(original)
        for name, values in unpack.packed_weights(base, packing):
            if isinstance(own[name], quantised.QuantisedLinear):
                continue
            weight = own[name].weight
            replaced.setdefault(name, (weight, weight.data.cpu().clone() if len(spec["twins"]) > 1 else None))
            weight.data.copy_(values)
        with quantised.with_weights(model, partial(unpack.packed_weight, base, packing)):
            with model.disable_adapter():
                without = record(model, spec)
            found.append({"base": twin["digest"], "probes": compare(spec, without, record(model, spec))})
    return found


def linear_of(model, name: str):
    """The base's own module that has the weight of this name, within the PEFT model."""
    try:
        module = model.get_base_model().get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        return None
    return getattr(module, "base_layer", module)


def first_tokens(base: torch.Tensor, adapter: torch.Tensor, likeliest: int = 32) -> dict:
    """
    The question to a replica: the likeliest first tokens of base and adapter together, with the logprobs of both. There are many,
    because the effect of an adapter that was hardly trained must be distinguished from rounding; but no more than vLLM answers
    in one request (128).
    """
    likeliest = min(likeliest, len(base))
    tokens = torch.unique(torch.cat([base.topk(likeliest).indices, adapter.topk(likeliest).indices]))
    return {"tokens": tokens.tolist(), "base": base[tokens].tolist(), "adapter": adapter[tokens].tolist()}
