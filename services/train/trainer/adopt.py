"""
Adopts a LoRA that was trained elsewhere, instead of training one: the same directory, the same result.

In, beside spec.json with `"method": {"type": "import"}`, and base/:
    DIR/import/adapter_config.json, adapter_model.safetensors      PEFT's layout
Out:
    DIR/adapter/, DIR/result.json       as after a training; no evaluation, because its training data is unknown

PEFT loads the adapter into the base. The trainer writes it in the canonical form and records what PEFT computes with it, so that
a server can be compared with PEFT later. Nothing in the files is executed: the weights are read as safetensors, and from the
config only the fields that scale the weights are used.
"""

import json
import re

from spec import TABLES, TrainerError, check_section

# These initialisations change the base's weights when training begins. The adapter alone is wrong on the unchanged base that is served.
INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
PREFIX = "base_model.model."


def adopt(attempt, spec: dict, load_base, time_limit) -> None:
    directory = attempt.directory
    with attempt.phase("load_base"):
        import canonicalise
        import compute
        import language_model
        import probes
        import torch
        from peft.utils import set_peft_model_state_dict
        from safetensors.torch import load_file

        config = read_config(directory / "import/adapter_config.json")
        try:
            weights = load_file(directory / "import/adapter_model.safetensors")
        except Exception as error:
            raise TrainerError("ADAPTER_UNREADABLE", f"adapter_model.safetensors cannot be read: {error}", "adapter_model.safetensors") from error
        check_values(weights)
        on_gpu = spec["device"] != "cpu" and torch.cuda.is_available()
        compute_type = compute.BF16 if on_gpu else compute.native_type()
        model = load_base(directory, compute_type)
        with time_limit(f"applying the patterns of adapter_config.json to {len(weights) // 2} modules"):
            config, weights = with_names_of(model, config, weights)
            model = attach_adapter(model, config, weights)
        loaded = set_peft_model_state_dict(model, weights)
        if loaded.unexpected_keys:
            raise TrainerError("ADAPTER_TENSOR_UNKNOWN", f"PEFT has no place for tensor {loaded.unexpected_keys[0]}.", loaded.unexpected_keys[0])
        language_model.text_config(model).use_cache = False
        if on_gpu:
            model.to("cuda")
        attempt.result["environment"] = compute.describe(compute_type, spec["training"]["seed"], on_gpu)

    with attempt.phase("save"):
        tensors = canonicalise.canonical_tensors(model)
        canonicalise.load_published(model, tensors)

    with attempt.phase("probe"):
        with model.disable_adapter():
            base = probes.record(model, spec)
        attempt.result["probes"] = probes.compare(spec, base, probes.record(model, spec))
        attempt.result["twins"] = probes.on_twins(model, spec, directory)

    with attempt.phase("save"):
        attempt.result["adapter"] = canonicalise.write_adapter(directory / "adapter", tensors, spec, language_model.text_config(model).num_hidden_layers)


def read_config(path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError("ADAPTER_CONFIG_INVALID", f"adapter_config.json cannot be read: {error}", "adapter_config.json") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise TrainerError(
            "ADAPTER_CONFIG_INVALID", "adapter_config.json is not the config of a LoRA: peft_type must be LORA, and r a number.", "adapter_config.json"
        )
    try:
        check_section("lora", {name: value for name, value in config.items() if name in TABLES["lora"]["judged"]})
    except TrainerError as error:
        raise TrainerError(
            "ADAPTER_FEATURE_UNSUPPORTED", f"adapter_config.json cannot be served: {error}", (error.param or "").removeprefix("lora.")
        ) from error
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(INITS_THAT_CHANGE_THE_BASE):
        raise TrainerError(
            "ADAPTER_FEATURE_UNSUPPORTED",
            f'adapter_config.json says init_lora_weights "{init}", which changes the base: convert the adapter with PEFT\'s path_initial_model_for_weight_conversion.',
            "init_lora_weights",
        )
    return config


def check_values(weights: dict) -> None:
    if not weights:
        raise TrainerError("ADAPTER_EMPTY", "adapter_model.safetensors holds no weights.", "adapter_model.safetensors")
    for name, weight in weights.items():
        if not weight.dtype.is_floating_point:
            raise TrainerError("ADAPTER_DTYPE", f"tensor {name} has type {weight.dtype}; LoRA weights are floating point.", name)
        if not weight.isfinite().all():
            raise TrainerError("ADAPTER_NAN", f"tensor {name} holds NaN or infinite values: its training diverged.", name)
    if not any(weight.any() for name, weight in weights.items() if ".lora_B." in name):
        raise TrainerError("ADAPTER_ZERO", "Every lora_B is zero: the adapter does nothing.", "adapter_model.safetensors")


def with_names_of(model, config: dict, weights: dict) -> tuple[dict, dict]:
    """
    Config and weights with the names that their modules have in this base, whose language model may stand in another wrapper than in training. The
    config's patterns are for the old names, so each becomes one that lists the modules it is for.
    """
    import language_model
    from peft.utils.other import get_pattern_key

    linear = language_model.linear_modules(model)
    modules = {}

    def renamed(name: str) -> str:
        module, part, rest = name.removeprefix(PREFIX).rpartition(".lora_")
        if not (name.startswith(PREFIX) and part):
            return name
        modules[module] = language_model.named_as_in(linear, module)
        return f"{PREFIX}{modules[module]}{part}{rest}"

    weights = {renamed(name): weight for name, weight in weights.items()}
    if all(old == new for old, new in modules.items()):
        return config, weights
    patterns = {}
    for field in ("rank_pattern", "alpha_pattern"):
        given = config.get(field) or {}
        listed = {key: [] for key in given}
        for old, new in modules.items() if given else ():
            listed.get(get_pattern_key(list(given), old), []).append(re.escape(new))
        patterns[field] = {"|".join(names): given[key] for key, names in listed.items() if names}
    return config | patterns, weights


def attach_adapter(model, config: dict, weights: dict):
    """Returns the PEFT model with a LoRA layer for each pair of tensors, scaled as the config says. Raises TrainerError."""
    import language_model
    from peft import LoraConfig, get_peft_model
    from peft.utils.other import get_pattern_key

    linear = language_model.linear_modules(model)
    ranks = {}
    for name, weight in weights.items():
        module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if not name.startswith(PREFIX) or part not in ("A.weight", "B.weight") or weight.dim() != 2:
            raise TrainerError("ADAPTER_TENSOR_UNKNOWN", f"tensor {name} is no low-rank weight (base_model.model.<module>.lora_A.weight).", name)
        if module not in linear:
            raise TrainerError("ADAPTER_MODULE_UNKNOWN", f"the base has no linear module {module} inside it.", module)
        outputs, inputs = linear[module].weight.shape
        rank, size, expected = (*weight.shape, inputs) if part == "A.weight" else (*reversed(weight.shape), outputs)
        if size != expected:
            raise TrainerError(
                "ADAPTER_BASE_MISMATCH",
                f"tensor {name} is {list(weight.shape)}, the base's {module} maps {inputs} to {outputs}: it was trained on another base.",
                name,
            )
        if ranks.setdefault(module, rank) != rank:
            raise TrainerError("ADAPTER_SHAPE_MISMATCH", f"lora_A and lora_B of {module} have different ranks.", module)
        pair = name.replace(".lora_A.", ".lora_B.") if part == "A.weight" else name.replace(".lora_B.", ".lora_A.")
        if pair not in weights:
            raise TrainerError("ADAPTER_TENSOR_MISSING", f"module {module} has {name} but no {pair}.", module)
    kept = {name: config[name] for name in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name) is not None}
    try:
        # Ranks are checked before PEFT allocates memory by them, because a config may claim any rank.
        patterns = config.get("rank_pattern") or {}
        for name, rank in ranks.items():
            declared = patterns.get(get_pattern_key(list(patterns), name), config["r"])
            if declared != rank:
                message = f"module {name} has weights of rank {rank}; adapter_config.json says {declared}, by which its scaling would be wrong."
                raise TrainerError("ADAPTER_SHAPE_MISMATCH", message, name)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=sorted(ranks), **kept))
    except TrainerError:
        raise
    except Exception as error:
        raise TrainerError("ADAPTER_CONFIG_INVALID", f"PEFT refuses adapter_config.json: {error}", "adapter_config.json") from error
