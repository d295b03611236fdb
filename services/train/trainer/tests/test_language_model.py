"""Adapters of a base with a vision tower are for its language model only, and of experts it is told which they do not reach."""

import json
from typing import Any

import pytest
import torch
from conftest import VOCABULARY, Directory
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.4,
}
SHORT = {"num_train_epochs": 1, "save_steps": 100}


def make(model, path):
    model.to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory):
    torch.manual_seed(0)
    tower = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = TEXT | {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    config = Gemma3Config(text_config=text, vision_config=tower | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4, image_token_index=60)
    return make(Gemma3ForConditionalGeneration(config), tmp_path_factory.mktemp("wrapped"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    torch.manual_seed(0)
    return make(Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)), tmp_path_factory.mktemp("experts"))


def modules_of(run: Directory) -> set[str]:
    names = load_file(run.path / "adapter/adapter_model.safetensors")
    return {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in names}


def test_the_vision_tower_is_left_alone(directory, wrapped):
    run = directory(base=wrapped, training=SHORT)
    assert run.run() == 0, run.result["error"]
    modules = modules_of(run)
    assert len(modules) == 14
    assert all(name.startswith("model.language_model.layers.") for name in modules)
    assert run.result["evaluation"]["adapter_loss"] < run.result["evaluation"]["base_loss"]
    assert run.lines("warning") == []


def test_what_is_excluded_and_layers_mean_those_of_the_language_model(directory, wrapped):
    run = directory(base=wrapped, training=SHORT, lora={"exclude_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]})
    assert run.run() == 0, run.result["error"]
    parts = [f"self_attn.{name}_proj" for name in "kv"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert modules_of(run) == {f"model.language_model.layers.1.{part}" for part in parts}
    assert json.loads((run.path / "adapter/adapter_config.json").read_text())["layers_to_transform"] == [1]


@pytest.mark.parametrize("target", [["fc1"], ".*vision_tower.*q_proj", "model.vision_tower.encoder.layers.0.self_attn.q_proj"])
def test_modules_of_the_vision_tower_are_refused(directory, wrapped, target):
    run = directory(base=wrapped, lora={"target_modules": target})
    assert run.run() == 1
    assert run.result["error"]["code"] == "NO_TARGET_MODULES"


def test_the_wrapper_stays_where_transformers_would_take_out_the_language_model(directory, tmp_path):
    torch.manual_seed(0)
    tower = {"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 16, "num_heads": 2, "patch_size": 16, "num_position_embeddings": 16}
    text = TEXT | {
        "layer_types": ["linear_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 1},
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    base = make(Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=tower, image_token_id=60)), tmp_path / "qwen3_5")
    run = directory(base=base, training=SHORT)
    assert run.run() == 0, run.result["error"]
    assert {"model.language_model.layers.0.linear_attn.in_proj_qkv", "model.language_model.layers.1.self_attn.q_proj"} <= modules_of(run)


def test_of_experts_it_is_told_that_the_adapter_does_not_reach_them(directory, experts):
    run = directory(base=experts, training=SHORT)
    assert run.run() == 0, run.result["error"]
    assert {name.rpartition(".")[2] for name in modules_of(run)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    [warning] = run.lines("warning")
    assert warning["code"] == "EXPERTS_NOT_ADAPTED"
    assert "reaches k_proj, o_proj, q_proj, v_proj, and none of the 4 experts in each of 2 layers (model.layers.0.mlp.experts" in warning["message"]


@pytest.mark.parametrize("beginning", ["model.language_model.", "language_model.model.", "model.", "model.text_model."])
def test_an_adapter_from_elsewhere_gets_the_names_of_its_base(directory, wrapped, beginning):
    trained = directory("trained", base=wrapped, training=SHORT)
    assert trained.run() == 0
    run = directory("adopted", base=wrapped, method={"type": "import"})
    (trained.path / "adapter").rename(run.path / "import")
    file = run.path / "import/adapter_model.safetensors"
    weights = load_file(file)
    save_file({name.replace("model.model.language_model.", f"model.{beginning}"): weight for name, weight in weights.items()}, file)
    # One module has another scaling, under the name that the file has for it.
    config = json.loads((run.path / "import/adapter_config.json").read_text())
    own = "layers.0.self_attn.q_proj"
    (run.path / "import/adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {f"{beginning}{own}": 2 * config["lora_alpha"]}}))
    assert run.run() == 0, run.result["error"]
    published = load_file(run.path / "adapter/adapter_model.safetensors")
    assert published.keys() == weights.keys()
    doubled = [name for name in weights if f".{own}.lora_B." in name]
    assert len(doubled) == 1
    assert all(torch.equal(published[name], weight * (2 if name in doubled else 1)) for name, weight in weights.items())


def test_an_adapter_of_the_vision_tower_is_refused(directory, wrapped):
    run = directory(base=wrapped, method={"type": "import"})
    (run.path / "import").mkdir()
    name = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)}, run.path / "import/adapter_model.safetensors")
    (run.path / "import/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}))
    assert run.run() == 1
    assert run.result["error"]["code"] == "ADAPTER_MODULE_UNKNOWN"
