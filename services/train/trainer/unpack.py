"""
Loads a base whose weights GPTQ's or AWQ's tools packed into 4 bits: each weight becomes the number that the packed one stands for.

An engine multiplies with the same numbers, so the model answers as the packed one does, and training, evaluation and probes are those of the
base that is served. It needs the memory of the unpacked weights: packing saves memory where the base is served, not here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")
# Place, in a word of 32 bits, of each of eight values that follow each other.
PLACES = {"gptq": [0, 1, 2, 3, 4, 5, 6, 7], "awq": [0, 4, 1, 5, 2, 6, 3, 7]}


def packing_of(base: Path) -> dict[str, Any] | None:
    """`quantization_config` of a base that is packed so; None: it is stored otherwise."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    return config if config.get("quant_method") in PLACES and (config.get("bits") or config.get("w_bit")) == 4 else None


def load(base: Path, packing: dict[str, Any], dtype: torch.dtype, **arguments):
    """The model with unpacked weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    del config.quantization_config
    tensors = {name: weight.to(dtype) for name, weight in packed_weights(base, packing)}
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            names = shard.keys()
            tensors |= {name: shard.get_tensor(name) for name in names if not name.endswith(PARTS)}
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype, **arguments)
    if (base / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(base, local_files_only=True)
    return model


def packed_names(base: Path) -> Iterator[str]:
    """Names of the weights that are packed."""
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            yield from (f"{name.removesuffix('.qweight')}.weight" for name in sorted(shard.keys()) if name.endswith(".qweight"))


def packed_weights(base: Path, packing: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of the weights that are packed, one at a time."""
    for name in packed_names(base):
        yield name, packed_weight(base, packing, name)


def packed_weight(base: Path, packing: dict[str, Any], name: str) -> torch.Tensor:
    """The value of a weight that is packed."""
    module = name.removesuffix(".weight")
    parts = {}
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            names = set(shard.keys())
            parts |= {part: shard.get_tensor(module + part) for part in PARTS if module + part in names}
    return unpack(parts, packing)


def unpack(parts: dict[str, torch.Tensor], packing: dict[str, Any]) -> torch.Tensor:
    """The weight, [outputs, inputs] in float32, of a packed module's tensors."""
    is_awq = packing["quant_method"] == "awq"
    places = PLACES[packing["quant_method"]]
    # GPTQ packs along the inputs, AWQ along the outputs; both have a row for each input or group.
    values = nibbles(parts[".qweight"], places) if is_awq else nibbles(parts[".qweight"].T, places).T
    zeros = nibbles(parts[".qzeros"], places)
    if not is_awq and packing.get("checkpoint_format") != "gptq_v2":
        zeros += 1  # GPTQ's first format stores the zero point less one
    groups = parts.get(".g_idx")
    if groups is None:
        groups = torch.arange(len(values)) // (len(values) // len(zeros))
    return ((values - zeros[groups.long()]) * parts[".scales"].float()[groups.long()]).T.contiguous()


def nibbles(words: torch.Tensor, places: list[int]) -> torch.Tensor:
    """The 4-bit values of int32 words, along the last axis."""
    shifts = torch.tensor(places, dtype=torch.int32) * 4
    return ((words[..., None] >> shifts) & 15).flatten(-2).float()
