"""
The language model of a base. In most bases it is the whole model. Multimodal bases wrap it: beside it stand a vision tower and a projector,
which adapters leave as they are. Names are those of the whole model (`model.language_model.layers.0.self_attn.q_proj`), by which engines know
them: packages/models/src/architectures.ts has the architectures for which that is proven.
"""

import re
from pathlib import Path
from typing import Any

import torch


def auto_class_of(directory: Path) -> Any:
    """
    transformers' class that loads the base as config.json names it. AutoModelForCausalLM alone does not: of some wrappers it takes
    out the language model, whose modules then have names that the served wrapper does not know, and others it refuses.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    wrapper = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    return AutoModelForImageTextToText if wrapper is not None and [wrapper] == config.architectures else AutoModelForCausalLM


def text_config(model) -> Any:
    """The configuration of the language model: number of layers, width."""
    return model.config.get_text_config()


def prefix_of(model) -> str:
    """What the names of the language model's modules begin with; "" if it is the whole model."""
    if text_config(model) is model.config:
        return ""
    decoder = model.get_decoder()
    return next(f"{name}." for name, module in model.named_modules() if module is decoder)


def head_of(model) -> torch.nn.Module | None:
    """The output layer. Some wrappers do not tell it themselves."""
    return model.get_output_embeddings() or model.get_decoder().get_output_embeddings()


def linear_modules(model) -> dict[str, torch.nn.Linear]:
    """The linear modules that an adapter may have, by name: those of the language model but for its output layer and the routers of experts."""
    head, prefix, routers = head_of(model), prefix_of(model), routers_of(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and name.startswith(prefix) and name not in routers
    }


def experts_of(model) -> list[str]:
    """The modules that hold the weights of all experts of a layer as one parameter of three dimensions."""
    prefix = prefix_of(model)
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix) and any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)) and name.rsplit(".", 1)[-1] == "experts"
    ]


def routers_of(model) -> set[str]:
    """Linear modules beside the experts that choose among them. Their output has a number for each expert."""
    routers = set()
    for name in experts_of(model):
        block = name.rpartition(".")[0]
        routers |= {f"{block}.{child}" for child, _ in model.get_submodule(block).named_children() if child in ("gate", "router")}
    return routers


# The beginnings under which adapters name the language model's modules: of newer and older transformers, and without a wrapper.
BEGINNINGS = ("model.language_model.", "language_model.model.", "model.text_model.", "language_model.", "model.")


def named_as_in(modules, name: str) -> str:
    """The name by which `modules` has a module that another wrapper, or none, calls `name`; `name` itself if there is no such module."""
    if name in modules:
        return name
    beginning = next((each for each in BEGINNINGS if name.startswith(each)), None)
    rest = name.removeprefix(beginning or "")
    return next((each + rest for each in BEGINNINGS if beginning and each + rest in modules), name)


def outside(prefix: str, excluded: str | list[str] | None) -> str | list[str] | None:
    """PEFT's `exclude_modules`: what is excluded already, and all that is outside of the language model, whose names may be the same."""
    if not prefix:
        return excluded
    before = rf"(?!{re.escape(prefix)}).*"
    if not excluded:
        return before
    own = excluded if isinstance(excluded, str) else rf"(?:.*\.)?(?:{'|'.join(map(re.escape, excluded))})"
    return rf"{before}|(?:{own})"


def missed_experts(model) -> str | None:
    """What to tell about a PEFT model on a mixture of experts: which experts its adapter does not reach. None: there are none."""
    base = model.get_base_model()
    experts = experts_of(base)
    if not experts:
        return None
    count = max(parameter.shape[0] for name in experts for parameter in base.get_submodule(name).parameters() if parameter.dim() == 3)
    reached = sorted({name.rsplit(".", 1)[-1] for name, module in base.named_modules() if hasattr(module, "lora_A") and name})
    return (
        f"The adapter reaches {', '.join(reached)}, and none of the {count} experts in each of {len(experts)} layers ({experts[0]} and so on):"
        " their weights are one tensor for all experts, which LoRA on linear modules does not reach."
    )
