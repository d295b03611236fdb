"""Every field of the classes that people paste is judged, in the versions that are installed, and our defaults are what we say."""

import importlib
import json
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import pytest
import spec
import train
from peft import LoraConfig
from transformers import TrainingArguments


def defaults_of(cls) -> dict:
    def plain(value):
        return value.value if isinstance(value, Enum) else vars(value) if hasattr(value, "__dict__") else value

    return {field.name: plain(field.default if field.default_factory is MISSING else field.default_factory()) for field in fields(cls)}


def sft_defaults() -> dict:
    """Fields of SFTConfig: from the installed trl if there is one, else a copy of the list in its source."""
    try:
        trl = importlib.import_module("trl")
    except ImportError:
        return json.loads((Path(__file__).with_name("sft_config.json")).read_text())["fields"]
    return {name: value for name, value in defaults_of(trl.SFTConfig).items() if name not in defaults_of(TrainingArguments)}


CLASSES = {
    "LoraConfig": ("lora", None, defaults_of(LoraConfig)),
    "TrainingArguments": ("training", None, defaults_of(TrainingArguments)),
    "SFTConfig": ("training", "SFTConfig", sft_defaults()),
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_is_judged_and_no_other(name):
    """A new version brings new fields; each must work, change nothing or be refused, and must not be met for the first time by a user."""
    section, of, defaults = CLASSES[name]
    table = spec.TABLES[section]
    judged = {field for field, entry in table["judged"].items() if entry.get("of") == of and not entry.get("older")}
    older = {field for field, entry in table["judged"].items() if entry.get("of") == of and entry.get("older")}
    works = set() if of else set(table["fields"]) - set(table["ownFields"])
    assert set(defaults) == judged | works
    assert not older & set(defaults), "a field that only older versions are said to have"


@pytest.mark.parametrize("name", CLASSES)
def test_a_default_of_the_class_is_never_refused(name):
    section, _, defaults = CLASSES[name]
    for field, value in defaults.items():
        if spec.TABLES[section]["judged"].get(field, {}).get("as") == "refused":
            assert spec.check_section(section, {field: value}) == {}


@pytest.mark.parametrize("name", ["LoraConfig", "TrainingArguments"])
def test_our_defaults_are_those_of_the_class_or_said_to_be_our_own(name):
    section, _, defaults = CLASSES[name]
    table = spec.TABLES[section]
    ours = {"lora": spec.LORA_DEFAULTS, "training": spec.TRAINING_DEFAULTS}[section]
    # A field without a default of Loraline's is not passed on, so the class's own default applies.
    other = {field for field in set(ours) - set(table["ownFields"]) if ours[field] is not None and ours[field] != defaults[field]}
    assert other == set(table["ownDefaults"])


def test_what_the_classes_write_can_be_pasted(tmp_path):
    lora = json.loads(json.dumps(LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict(), default=sorted))
    assert spec.check_lora(lora)["target_modules"] == ["q_proj"]
    arguments = json.loads(
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, save_total_limit=3, warmup_steps=0.1, logging_steps=10, save_steps=100).to_json_string()
    )
    assert spec.check_training(arguments)["save_total_limit"] == 3
    assert spec.check_training(sft_defaults())["optim"] == "adamw_torch_fused"


def test_a_recipe_of_older_versions_can_be_pasted():
    recipe = {
        "output_dir": "./output/Qwen2_instruct_lora",
        "per_device_train_batch_size": 4,
        "logging_steps": 10,
        "save_on_each_node": True,
        "gradient_checkpointing": True,
        "evaluation_strategy": "no",
        "warmup_ratio": 0.03,
        "fp16": False,
        "group_by_length": True,
        "report_to": "tensorboard",
    }
    training = spec.check_training(recipe)
    assert (training["per_device_train_batch_size"], training["warmup_steps"], training["gradient_checkpointing"]) == (4, 0.03, True)
    assert set(training) == set(spec.TRAINING_DEFAULTS)


@pytest.mark.parametrize(
    "section, given, code, words",
    [
        ("training", {"fp16": True}, "TRAINING_FIELD_REFUSED", "bf16"),
        ("training", {"optim": "lion_8bit"}, "SPEC_INVALID", "not installed"),
        ("training", {"seed": True}, "SPEC_INVALID", "a whole number"),
        ("training", {"save_steps": 0}, "SPEC_INVALID", "at least 1"),
        ("training", {"warmup_ratio": "0.1"}, "SPEC_INVALID", "a number"),
        ("lora", {"kasa_config": {"beta": 1}}, "LORA_FIELD_REFUSED", "plain LoRA"),
        ("lora", {"task_type": "SEQ_CLS"}, "LORA_FIELD_REFUSED", "causal"),
        ("lora", {"rank_pattern": {"q_proj": 0}}, "SPEC_INVALID", "at least 1"),
        ("lora", {"target_modules": []}, "SPEC_INVALID", "not empty"),
    ],
)
def test_no_is_said_with_the_reason(section, given, code, words):
    with pytest.raises(spec.TrainerError, match=words) as caught:
        spec.check_section(section, given)
    assert (caught.value.code, caught.value.param) == (code, f"{section}.{next(iter(given))}")


def test_arguments_of_a_schedule_are_checked():
    with pytest.raises(spec.TrainerError, match="num_cycles, not min_lr"):
        spec.check_training({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 0}})


@pytest.mark.parametrize(
    ("schedule", "given", "words"),
    [
        ("cosine", {"num_cycles": "2"}, "num_cycles must be a number, not"),
        ("inverse_sqrt", {"timescale": 0}, "timescale must be a number above 0"),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "exp"}, "decay_type must be one of linear, cosine, 1-sqrt"),
    ],
)
def test_values_of_a_schedule_are_checked(schedule, given, words):
    with pytest.raises(spec.TrainerError, match=words):
        spec.check_training({"lr_scheduler_type": schedule, "lr_scheduler_kwargs": given})


@pytest.mark.parametrize("given", [{"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0, "warmup_ratio": 0.1}])
def test_a_ratio_beside_no_steps_counts(given):
    assert spec.check_training(given)["warmup_steps"] == 0.1
    assert spec.check_training(given | {"warmup_steps": 5})["warmup_steps"] == 5


def test_patience_without_the_best_step_is_refused():
    with pytest.raises(spec.TrainerError, match="needs load_best_model_at_end"):
        spec.check_training({"early_stopping_patience": 2})


def test_every_method_of_the_contracts_has_a_function_here():
    assert sorted(train.METHODS) == sorted(spec.TABLES["methods"])


def test_a_method_without_a_function_is_refused_naming_those_that_have_one(tmp_path):
    minimal = {"version": 1, "run_id": "r", "attempt": 1, "base": {"name": "b", "revision": "1", "digest": "d"}, "lora": {}, "training": {}}
    (tmp_path / "spec.json").write_text(json.dumps({**minimal, "method": {"type": "telepathy"}}))
    assert train.main(tmp_path) == 1
    error = json.loads((tmp_path / "result.json").read_text())["error"]
    message = "method.type must be one of supervised, import, dpo, orpo, simpo, kto, not 'telepathy'."
    assert error == {"code": "SPEC_INVALID", "message": message, "param": "method.type"}
