"""
The canonical form, in which every adapter is published, whatever options it was trained with:

    adapter_model.safetensors   bf16, PEFT's names, one rank, the scaling folded into lora_B
    adapter_config.json         lora_alpha = r, use_rslora false, no patterns, sorted target_modules, base and revision

Older engines ignore `rank_pattern` and `alpha_pattern` and would scale such an adapter wrongly without an error. This form has
one rank and no patterns, so every engine scales it correctly. The same weights always give the same bytes, so an adapter that is taken out and
added again keeps its digest; what is known about it stands elsewhere (the gateway writes its model card).
"""

import hashlib
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from spec import TrainerError

if TYPE_CHECKING:
    from changed_base import ChangedBase

ADAPTER = "default"


def lora_layers(model) -> dict[str, LoraLayer]:
    """Every adapted module by its name in the base, such as `model.layers.0.self_attn.q_proj`."""
    return {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}


def weight_of(linear: torch.nn.Module) -> torch.Tensor:
    assert isinstance(linear.weight, torch.Tensor)
    return linear.weight


@torch.no_grad()
def canonical_tensors(model, changed_base: "ChangedBase | None" = None) -> dict[str, torch.Tensor]:
    """PEFT model to the tensors to publish. Raises ADAPTER_INVALID for weights that are not finite or did nothing."""
    layers = lora_layers(model)
    pairs = {}
    for name, layer in layers.items():
        a, b = weight_of(layer.lora_A[ADAPTER]).float(), weight_of(layer.lora_B[ADAPTER]).float()  # [r, in], [out, r]
        a, b = (a, b) if changed_base is None else changed_base.learned(name, a, b)
        pairs[name] = a, b * layer.scaling[ADAPTER]  # rsLoRA and patterns are in the scaling
    rank = max(a.shape[0] for a, _ in pairs.values())
    tensors = {}
    for name, (a, b) in pairs.items():
        padding = rank - a.shape[0]
        a = torch.nn.functional.pad(a, (0, 0, 0, padding))
        b = torch.nn.functional.pad(b, (0, padding))
        for part, weight in (("lora_A", a), ("lora_B", b)):
            weight = weight.to(torch.bfloat16).cpu().contiguous()
            if not torch.isfinite(weight).all():
                raise TrainerError("ADAPTER_INVALID", f"{name}.{part} holds NaN or infinite values. Lower training.learning_rate.", "training.learning_rate")
            tensors[f"base_model.model.{name}.{part}.weight"] = weight
    if len(tensors) != 2 * len(layers):
        raise TrainerError("ADAPTER_INVALID", f"{len(tensors)} tensors for {len(layers)} adapted modules; there must be two for each.")
    if not any(does_something(*pair) for pair in pairs.values()):
        raise TrainerError(
            "ADAPTER_INVALID", "Every lora_B is zero: training changed nothing. Check training.learning_rate and the dataset.", "training.learning_rate"
        )
    return tensors


def does_something(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether B x A can be other than zero: some row of A and the same column of B are."""
    return bool((b.any(dim=0) & a.any(dim=1)).any())


@torch.no_grad()
def load_published(model, tensors: dict[str, torch.Tensor]) -> None:
    """
    Loads the published tensors into the model, in the type that it computes in (PEFT would convert its inputs to the type of the
    weights), so that evaluation and probes use exactly the weights that will be served.
    """
    for name, layer in lora_layers(model).items():
        for part in ("lora_A", "lora_B"):
            linear = getattr(layer, part)[ADAPTER]
            weight = tensors[f"base_model.model.{name}.{part}.weight"].to(linear.weight.device, model.dtype)
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.scaling[ADAPTER] = 1.0


@contextmanager
def as_published(model, tensors: dict[str, torch.Tensor]):
    """With the published tensors, as `load_published` leaves it; afterwards the very parameters are back that an optimizer trains."""
    kept = [
        (layer, part, layer.scaling[ADAPTER], getattr(layer, part)[ADAPTER].weight) for layer in lora_layers(model).values() for part in ("lora_A", "lora_B")
    ]
    load_published(model, tensors)
    try:
        yield
    finally:
        for layer, part, scaling, weight in kept:
            getattr(layer, part)[ADAPTER].weight = weight
            layer.scaling[ADAPTER] = scaling


@torch.no_grad()
def start_from(model, directory: Path, name: str) -> None:
    """
    Begins with the published adapter in `directory`: the model's scaling x B x A is that adapter's B x A, whatever rank and scaling the
    model has. Modules and ranks that the adapter lacks keep their beginning (A drawn at random, B zero). Raises INIT_FROM_MISMATCH.
    """
    published, layers = load_file(directory / "adapter_model.safetensors"), lora_layers(model)
    modules = {tensor.removeprefix("base_model.model.").rpartition(".lora_")[0] for tensor in published}
    if missing := sorted(modules - set(layers)):
        raise TrainerError(
            "INIT_FROM_MISMATCH",
            f"init_from: {name} adapts {missing[0]}, which this run leaves out. Choose its modules in lora.target_modules and its layers too.",
            "lora.target_modules",
        )
    for module in sorted(modules):
        layer = layers[module]
        a, b = (published[f"base_model.model.{module}.lora_{part}.weight"].float() for part in "AB")
        used = a.any(dim=1) | b.any(dim=0)  # others only pad it to the adapter's rank; they would never learn again
        rank = int(used.sum())
        if rank > layer.r[ADAPTER]:
            raise TrainerError(
                "INIT_FROM_MISMATCH", f"init_from: {name} has rank {rank} in {module}, and this run {layer.r[ADAPTER]}. Set lora.r to {rank} or more.", "lora.r"
            )
        weight_of(layer.lora_A[ADAPTER])[:rank] = a[used]
        weight_of(layer.lora_B[ADAPTER])[:, :rank] = b[:, used] / layer.scaling[ADAPTER]


def write_adapter(directory: Path, tensors: dict[str, torch.Tensor], spec: dict, number_of_layers: int) -> dict:
    """Writes the directory under a temporary name and renames it, so it is never incomplete. Returns `adapter` of result.json."""
    modules = sorted({name.split(".")[-3] for name in tensors})
    rank = next(weight.shape[0] for name, weight in tensors.items() if ".lora_A." in name)
    parameters = sum(weight.numel() for weight in tensors.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec["base"]["name"],
        "revision": spec["base"]["revision"],
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "layers_to_transform": layers_of(tensors, number_of_layers),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }
    contents = {
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
    partial = directory.with_name(f".{directory.name}.partial")
    for leftover in (partial, directory):
        if leftover.exists():
            for path in leftover.iterdir():
                path.unlink()
            leftover.rmdir()
    partial.mkdir()
    for name, content in contents.items():
        path = partial / name
        path.write_bytes(content)
        path.chmod(0o644)  # an engine may run as another user
    os.rename(partial, directory)
    files = [{"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in sorted(contents.items())]
    return {"rank": rank, "target_modules": modules, "parameters": parameters, "files": files}


def layers_of(tensors: dict[str, torch.Tensor], number_of_layers: int) -> list[int] | None:
    """Returns the adapted layers if every module is adapted in the same ones and some layers are not adapted; else None.

    With them in the config PEFT creates no empty adapters in the other layers.
    """
    layers = {}
    for name in tensors:
        if match := re.search(r"\.(\d+)\.", name):
            layers.setdefault(name.split(".")[-3], set()).add(int(match[1]))
    first, *others = layers.values() or [set()]
    partial = all(other == first for other in others) and first != set(range(number_of_layers))
    return sorted(first) if partial and first else None
