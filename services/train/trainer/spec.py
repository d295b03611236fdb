"""
Reads and checks `spec.json`. Standard library only, so that a wrong spec is refused in a tenth of a
second, before torch is imported.

The fields of `lora` and `training`, their defaults and ranges, and what becomes of the other fields of PEFT's and Hugging
Face's classes stand in spec_fields.json. It is generated from packages/contracts/src/spec, by which the services check
the same things; they are checked here again because a directory is the trainer's whole interface and anybody may fill one.
"""

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any


class TrainerError(Exception):
    """A failure with a stable code. The message says what is wrong, where, and what to do."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param

    def as_dict(self) -> dict:
        return {"code": self.code, "message": str(self), "param": self.param}


# Section to its fields (JSON Schemas) and judged fields, and more; see packages/contracts/src/generate/trainer-fields.ts.
TABLES: dict[str, Any] = json.loads(Path(__file__).with_name("spec_fields.json").read_text(encoding="utf-8"))
# Field to its default. None: left to PEFT or transformers.
LORA_DEFAULTS: dict[str, Any] = {name: field.get("default") for name, field in TABLES["lora"]["fields"].items()}
TRAINING_DEFAULTS: dict[str, Any] = {name: field.get("default") for name, field in TABLES["training"]["fields"].items()}
# Methods that learn from preferences: sides of pairs, or answers that are labelled good or bad.
PREFERENCE_METHODS: tuple[str, ...] = tuple(TABLES["methodFields"])
# How the base may be held in training: see quantised.py.
QUANTIZATIONS: tuple[str, ...] = tuple(TABLES["quantizations"])


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
    spec["method"] = check_method(spec.get("method", {"type": "supervised"}))
    if spec["method"]["type"] in PREFERENCE_METHODS and spec["training"]["label_smoothing_factor"]:
        message = "training.label_smoothing_factor smooths the targets of the supervised loss. Remove it; method.label_smoothing of dpo is about pairs."
        raise TrainerError("SPEC_INVALID", message, "training.label_smoothing_factor")
    spec["init"] = spec.get("init")
    if spec["init"] is not None and not (isinstance(spec["init"], dict) and {"name", "digest"} <= set(spec["init"])):
        raise TrainerError("SPEC_INVALID", "init needs a name and a digest.", "init")
    begins = spec["lora"]["init_lora_weights"]
    if str(begins).startswith(("pissa", "olora")):
        if spec["init"] is not None:
            raise TrainerError("SPEC_INVALID", f"lora.init_lora_weights {begins} begins with the base, and init_from with a version. Remove one.", "lora")
        if spec["method"]["type"] in ("dpo", "kto"):
            message = f"lora.init_lora_weights {begins} changes the base during training, which is what {spec['method']['type']} compares with. Remove it."
            raise TrainerError("SPEC_INVALID", message, "lora.init_lora_weights")
    if spec["training"]["fsdp"] and (str(begins).startswith(("pissa", "olora")) or spec["method"]["type"] in ("dpo", "kto")):
        what = f"method {spec['method']['type']}" if spec["method"]["type"] in ("dpo", "kto") else f"lora.init_lora_weights {begins}"
        raise TrainerError("SPEC_INVALID", f"training.fsdp does not go with {what}, which needs the whole base in each process. Remove one.", "training.fsdp")
    spec["quantization"] = check_quantization(spec.get("quantization"), spec)
    spec["probes"] = spec.get("probes") or []
    spec["twins"] = spec.get("twins") or []
    if not all(isinstance(twin, dict) and {"path", "digest"} <= set(twin) for twin in spec["twins"]):
        raise TrainerError("SPEC_INVALID", "each of twins needs a path and a digest.", "twins")
    spec["device"] = spec.get("device", "auto")
    if spec["device"] not in ("auto", "cuda", "cpu"):
        raise TrainerError("SPEC_INVALID", f"device must be auto, cuda or cpu, not {spec['device']!r}.", "device")
    for i, probe in enumerate(spec["probes"]):
        if not isinstance(probe.get("name"), str) or not probe.get("input_ids"):
            raise TrainerError("SPEC_INVALID", f"probes.{i} needs a name and a list of token ids.", f"probes.{i}")
    return spec


def check_lora(given: dict) -> dict:
    """All fields of `lora`, with the defaults of those that are absent or null."""
    return LORA_DEFAULTS | check_section("lora", given)


def check_training(given: dict) -> dict:
    """All fields of `training`, with the defaults of those that are absent or null."""
    training = TRAINING_DEFAULTS | check_section("training", given)
    if training["max_steps"] == 0:
        raise TrainerError("SPEC_INVALID", "training.max_steps must be at least 1, or -1 for as many as num_train_epochs needs.", "training.max_steps")
    if training["early_stopping_patience"] is not None and not training["load_best_model_at_end"]:
        message = "training.early_stopping_patience needs load_best_model_at_end: true, or what is published would be of a step after the best one."
        raise TrainerError("SPEC_INVALID", message, "training.early_stopping_patience")
    schedule, known = training["lr_scheduler_type"], TABLES["schedules"][training["lr_scheduler_type"]]
    for name, value in (training["lr_scheduler_kwargs"] or {}).items():
        if name not in known:
            message = f"training.lr_scheduler_kwargs: the schedule {schedule} takes {', '.join(known) or 'no arguments'}, not {name}."
            raise TrainerError("SPEC_INVALID", message, "training.lr_scheduler_kwargs")
        if (wanted := expected(value, TABLES["scheduleArguments"][name])) is not None:
            param = f"training.lr_scheduler_kwargs.{name}"
            raise TrainerError("SPEC_INVALID", f"{param} must be {wanted}, not {value!r}.", param)
    return training


def check_method(given: Any) -> dict:
    """`method` with the defaults of the fields that are absent or null. train.py refuses an unknown type."""
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise TrainerError("SPEC_INVALID", "method must be an object with a type.", "method.type")
    method = dict(given)
    for name, field in TABLES["methodFields"].get(given["type"], {}).items():
        if method.get(name) is None:
            method[name] = field["default"]
        wanted = expected(method[name], field)
        if wanted is not None:
            raise TrainerError("SPEC_INVALID", f"method.{name} must be {wanted}, not {method[name]!r}.", f"method.{name}")
    return method


def check_quantization(given: Any, spec: dict) -> str | None:
    """`quantization`, after what cannot go with it was refused."""
    if given is not None and given not in QUANTIZATIONS:
        raise TrainerError("SPEC_INVALID", f"quantization must be {' or '.join(QUANTIZATIONS)}, not {given!r}.", "quantization")
    begins = str(spec["lora"]["init_lora_weights"])
    if given is not None and begins.startswith(("pissa", "olora")):
        message = f"lora.init_lora_weights {begins} changes the base's weights, which quantization {given} packs. Remove one of the two."
        raise TrainerError("SPEC_INVALID", message, "lora.init_lora_weights")
    if given is not None and spec["training"]["fsdp"]:
        message = "training.fsdp shares the base out among the processes, and with quantization each holds all of it. Remove one of the two."
        raise TrainerError("SPEC_INVALID", message, "training.fsdp")
    return given


def check_section(section: str, given: dict) -> dict:
    """Returns the fields of a section that Loraline uses and that say something. Raises for a refused, unknown or invalid one."""
    table, values = TABLES[section], {}
    for name, value in given.items():
        param, judged = f"{section}.{name}", table["judged"].get(name)
        if judged is None and name not in table["fields"]:
            raise TrainerError("SPEC_INVALID", f"{param}: there is no such field. Check the spelling, or remove it.", param)
        if value is None or (judged is not None and any(same(value, one) for one in judged["silent"])):
            continue
        if judged is not None and judged["as"] == "refused":
            message = f"{param} is refused: {judged['why']}. {judged['remedy']}."
            if section == "lora":
                raise TrainerError("LORA_FIELD_REFUSED", message, param)
            raise TrainerError("TRAINING_FIELD_REFUSED", message, param)
        # Fields of the data sections took effect when the rows were made, before this program starts.
        ours = name if judged is None else judged.get("to", "").removeprefix(f"{section}.")
        field = table["fields"].get(ours)
        if field is None:
            continue
        wanted = expected(value, field)
        if wanted is not None:
            raise TrainerError("SPEC_INVALID", f"{param} {field.get('error', f'must be {wanted}, not {value!r}')}.", param)
        # Of a field and its older spelling the one that is not 0 counts: older classes write both.
        values[ours] = value or values.get(ours, value) if judged is None else values.get(ours) or value
    return values


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same in JSON, where 0 is not false."""
    return json.dumps(a, sort_keys=True, default=str) == json.dumps(b, sort_keys=True)


KINDS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "integer": ("a whole number", int),
    "number": ("a number", (int, float)),
    "string": ("a text", str),
    "boolean": ("true or false", bool),
    "array": ("a list", list),
    "object": ("an object", dict),
}
BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", operator.ge),
    "exclusiveMinimum": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "exclusiveMaximum": ("below", operator.lt),
}


def expected(value: Any, schema: dict) -> str | None:
    """Returns what the value must be, in words, if it is invalid; None if it is valid. Knows the part of JSON Schema in spec_fields.json."""
    if "anyOf" in schema:
        wanted = [expected(value, one) for one in schema["anyOf"]]
        return None if None in wanted else " or ".join(filter(None, wanted))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = " or ".join(KINDS[kind][0] for kind in kinds)
    if not any(isinstance(value, KINDS[kind][1]) and isinstance(value, bool) == (kind == "boolean") for kind in kinds):
        return words
    if "const" in schema and value != schema["const"]:
        return json.dumps(schema["const"])
    if "enum" in schema and value not in schema["enum"]:
        return f"one of {', '.join(schema['enum'])}"
    for name, (bound, holds) in BOUNDS.items():
        if name in schema and not holds(value, schema[name]):
            return f"{words} {bound} {schema[name]}"
    if isinstance(value, str | list) and len(value) < schema.get("minLength", schema.get("minItems", 0)):
        return f"{words} that is not empty"
    inner = schema.get("items") or schema.get("additionalProperties") or {}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((f"{words} of which each is {wanted}" for part in parts if (wanted := expected(part, inner)) is not None), None)
