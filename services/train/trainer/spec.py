"""
What `spec.json` may say, and how it says no. Standard library only, so that a wrong spec is refused in a tenth of a
second, before torch is imported.

The line checks the same things at its doors (packages/contracts/src/spec/run-spec.ts); they are checked here again because
a directory is the trainer's whole interface and anybody may fill one.
"""

import json
from pathlib import Path


class TrainerError(Exception):
    """A failure with a stable code. The message says what is wrong, where, and what to do."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param

    def as_dict(self) -> dict:
        return {"code": self.code, "message": str(self), "param": self.param}


# Fields of PEFT's LoraConfig that vLLM can serve, with their defaults. None: left to PEFT.
LORA_DEFAULTS = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "exclude_modules": None,
    "use_rslora": False,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": None,
    "alpha_pattern": None,
    "init_lora_weights": True,
}
INITS = (True, "gaussian", "orthogonal")
# Fields that every saved config holds and that change nothing here.
LORA_IGNORED = {
    "task_type", "peft_type", "inference_mode", "fan_in_fan_out", "auto_mapping", "base_model_name_or_path", "revision",
    "peft_version", "ensure_weight_tying", "qalora_group_size", "megatron_core",
}  # fmt: skip
# The other fields of LoraConfig, with the reason why an adapter trained with them could not be served.
LORA_REFUSED = {
    "use_dora": "vLLM cannot serve DoRA",
    "modules_to_save": "vLLM refuses adapters that carry whole modules; train low-rank weights with target_modules instead",
    "bias": "vLLM refuses adapters with trained biases",
    "lora_bias": "vLLM refuses adapters with LoRA biases",
    "trainable_token_indices": "vLLM ignores or refuses trained token embeddings",
    "target_parameters": "vLLM has no loader for adapters on bare parameters",
    "layer_replication": "vLLM serves the base as it is; replicated layers do not exist there",
    "loftq_config": "LoftQ changes the base's weights; the adapter would be wrong on the served base",
    "corda_config": "CorDA changes the base's weights; the adapter would be wrong on the served base",
    "lora_ga_config": "LoRA-GA changes the base's weights; the adapter would be wrong on the served base",
    "eva_config": "EVA's data-driven ranks need passes over the data that this trainer does not make",
    "arrow_config": "Arrow routes between adapters inside PEFT; vLLM applies one adapter per request",
    "alora_invocation_tokens": "vLLM applies an adapter to the whole sequence; activated LoRA would answer differently",
    "use_qalora": "QALoRA pools the input; vLLM has no such kernel",
    "use_bdlora": "vLLM has no loader for block-diagonal LoRA",
    "velora_config": "vLLM serves plain LoRA only",
    "monteclora_config": "vLLM serves plain LoRA only",
    "kasa_config": "vLLM serves plain LoRA only",
    "megatron_config": "Megatron layers do not exist in the served model",
    "runtime_config": "ephemeral offload is a property of the machine, not of the adapter",
}

# Names and meanings of transformers.TrainingArguments.
TRAINING_DEFAULTS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3,
    "max_steps": -1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,  # below 1: a share of all steps
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_steps": 50,
    "save_total_limit": 2,
    "eval_steps": None,  # None: once, after the last step
    "gradient_checkpointing": False,
    "seed": 42,
    "bf16": True,
}
AT_LEAST_ONE = ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps", "save_total_limit", "eval_steps")


def read_spec(path: Path) -> dict:
    """Reads and checks spec.json. Raises TrainerError SPEC_INVALID or LORA_FIELD_REFUSED."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError("SPEC_INVALID", f"{path.name} cannot be read: {error}", path.name) from error
    if not isinstance(spec, dict) or spec.get("version") != 1:
        raise TrainerError("SPEC_INVALID", f"{path.name}: this trainer understands version 1 only.", "version")
    for name, kind in {"run_id": str, "attempt": int, "base": dict, "lora": dict, "training": dict}.items():
        if not isinstance(spec.get(name), kind):
            raise TrainerError("SPEC_INVALID", f"{name} is missing or is not of type {kind.__name__}.", name)
    for name in ("name", "revision", "digest"):
        if not isinstance(spec["base"].get(name), str):
            raise TrainerError("SPEC_INVALID", f"base.{name} is missing.", f"base.{name}")
    spec["lora"] = check_lora(spec["lora"])
    spec["training"] = check_training(spec["training"])
    spec["method"] = spec.get("method", {"type": "supervised"})
    if not isinstance(spec["method"], dict) or not isinstance(spec["method"].get("type"), str):
        raise TrainerError("SPEC_INVALID", "method must be an object with a type.", "method.type")
    spec["probes"] = spec.get("probes") or []
    spec["probe_tokens"] = spec.get("probe_tokens", 16)
    spec["device"] = spec.get("device", "auto")
    if spec["device"] not in ("auto", "cuda", "cpu"):
        raise TrainerError("SPEC_INVALID", f"device must be auto, cuda or cpu, not {spec['device']!r}.", "device")
    for i, probe in enumerate(spec["probes"]):
        if not isinstance(probe.get("name"), str) or not probe.get("input_ids"):
            raise TrainerError("SPEC_INVALID", f"probes.{i} needs a name and a list of token ids.", f"probes.{i}")
    return spec


def check_lora(given: dict) -> dict:
    lora = dict(LORA_DEFAULTS)
    for name, value in given.items():
        if name in LORA_DEFAULTS:
            lora[name] = LORA_DEFAULTS[name] if value is None else value
        elif name in LORA_REFUSED:
            if value not in (None, False, "none", [], {}):  # those change nothing: a config that PEFT wrote may be pasted whole
                raise TrainerError("LORA_FIELD_REFUSED", f"lora.{name} is refused: {LORA_REFUSED[name]}. Remove it.", f"lora.{name}")
        elif name not in LORA_IGNORED:
            raise TrainerError("SPEC_INVALID", f"lora.{name}: there is no such field. Check the spelling, or remove it.", f"lora.{name}")
    if lora["init_lora_weights"] not in INITS:
        raise TrainerError(
            "LORA_FIELD_REFUSED",
            f"lora.init_lora_weights={lora['init_lora_weights']!r} is refused: pissa, olora, corda, eva, loftq and lora_ga change"
            ' the base\'s weights, so the adapter would be wrong on the served base. Use true, "gaussian" or "orthogonal".',
            "lora.init_lora_weights",
        )
    if not isinstance(lora["r"], int) or lora["r"] < 1:
        raise TrainerError("SPEC_INVALID", f"lora.r must be a whole number of at least 1, not {lora['r']!r}.", "lora.r")
    if not lora["lora_alpha"] > 0:
        raise TrainerError("SPEC_INVALID", "lora.lora_alpha must be above 0.", "lora.lora_alpha")
    if not 0 <= lora["lora_dropout"] < 1:
        raise TrainerError("SPEC_INVALID", "lora.lora_dropout must be at least 0 and below 1.", "lora.lora_dropout")
    return lora


def check_training(given: dict) -> dict:
    training = dict(TRAINING_DEFAULTS)
    for name, value in given.items():
        if name not in training:
            raise TrainerError("SPEC_INVALID", f"training.{name}: there is no such field. Check the spelling, or remove it.", f"training.{name}")
        if value is not None:
            training[name] = value
    for name in AT_LEAST_ONE:
        value = training[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise TrainerError("SPEC_INVALID", f"training.{name} must be a whole number of at least 1, not {value!r}.", f"training.{name}")
    if training["max_steps"] == 0 or (training["max_steps"] < 0 and not training["num_train_epochs"] > 0):
        raise TrainerError("SPEC_INVALID", "training.num_train_epochs must be above 0, or training.max_steps at least 1.", "training.max_steps")
    return training
