"""An adapter that plain PEFT wrote is served as PEFT computes it, or refused with a code of its own."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

MODULES = ["q_proj", "v_proj", "up_proj"]


@pytest.fixture(scope="module")
def foreign(tiny_base, tmp_path_factory) -> Path:
    """Made by PEFT alone, with everything that has to be folded: rsLoRA, and ranks and scalings of their own for some modules."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=MODULES,
        use_rslora=True,
        rank_pattern={"v_proj": 2},
        alpha_pattern={r"layers\.1\.self_attn\.q_proj": 3},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    directory = tmp_path_factory.mktemp("foreign")
    model.save_pretrained(directory)
    return directory


def adopted(directory, foreign: Path, config=None, weights=None):
    """Runs the trainer in a directory with this adapter in import/, after the given changes to it."""
    run = directory(rows=[], held_out=[])
    shutil.copytree(foreign, run.path / "import")
    run.spec |= {"method": {"type": "import"}, "probes": [{"name": "a", "input_ids": [1, 5, 9]}, {"name": "b", "input_ids": [1, 30, 31, 32]}]}
    (run.path / "spec.json").write_text(json.dumps(run.spec))
    if config is not None:
        path = run.path / "import/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if weights is not None:
        path = run.path / "import/adapter_model.safetensors"
        save_file(weights(load_file(path)), path)
    return run


def test_what_is_published_computes_what_peft_computes(directory, foreign, tiny_base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = adopted(directory, foreign)
    assert run.run() == 0, run.result["error"]
    result = run.result
    assert result["status"] == "succeeded" and result["steps"] == 0 and result["evaluation"] is None
    assert result["adapter"]["rank"] == 4 and result["adapter"]["target_modules"] == sorted(MODULES)
    assert {file["path"] for file in result["adapter"]["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((run.path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["rank_pattern"], config["alpha_pattern"]) == (4, 4, False, {}, {})
    assert config["base_model_name_or_path"] == "tiny"

    def logprobs(path, prompt):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), path).float()
        with torch.no_grad():
            adapter = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            with model.disable_adapter():
                return adapter, model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)

    for probe in result["probes"]:
        theirs, base = logprobs(foreign, probe["input_ids"])
        ours, _ = logprobs(run.path / "adapter", probe["input_ids"])
        assert (ours - theirs).abs().max() < 0.05 < (ours - base).abs().max()
        first = probe["first"]
        assert first["adapter"] == pytest.approx(theirs[first["tokens"]].tolist(), abs=0.2)
        assert first["base"] == pytest.approx(base[first["tokens"]].tolist(), abs=0.2)


def test_what_was_trained_here_and_taken_out_comes_back_with_the_same_bytes(directory):
    trained = directory("trained")
    assert trained.run() == 0, trained.result["error"]
    assert trained.result["evaluation"] is not None
    taken = trained.path / "adapter"
    # As `adapters pull` writes it: with the name that the hub has for the base.
    again = adopted(directory, taken, {"base_model_name_or_path": "org/Tiny", "revision": None})
    assert again.run() == 0, again.result["error"]
    assert again.result["adapter"] == trained.result["adapter"]


def with_nan(weights):
    name = next(iter(weights))
    return weights | {name: torch.full_like(weights[name], float("nan"))}


REFUSED = {
    "dora": ({"use_dora": True}, None, "ADAPTER_FEATURE_UNSUPPORTED"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, None, "ADAPTER_FEATURE_UNSUPPORTED"),
    "biases": ({"bias": "all"}, None, "ADAPTER_FEATURE_UNSUPPORTED"),
    "another base at heart": ({"init_lora_weights": "pissa_niter_4"}, None, "ADAPTER_FEATURE_UNSUPPORTED"),
    "another method": ({"peft_type": "IA3"}, None, "ADAPTER_CONFIG_INVALID"),
    "another rank than its weights": ({"r": 8}, None, "ADAPTER_SHAPE_MISMATCH"),
    "more rank than fits into any memory": ({"r": 2**40, "rank_pattern": {"v_proj": 2, "up_proj": 4}}, None, "ADAPTER_SHAPE_MISMATCH"),
    "NaN": (None, with_nan, "ADAPTER_NAN"),
    "zeros": (None, lambda weights: {name: weight * 0 if ".lora_B." in name else weight for name, weight in weights.items()}, "ADAPTER_ZERO"),
    "modules the base lacks": (
        None,
        lambda weights: {name.replace("layers.2.", "layers.9."): weight for name, weight in weights.items()},
        "ADAPTER_MODULE_UNKNOWN",
    ),
    "shapes of another base": (
        None,
        lambda weights: {name: torch.cat([weight, weight], -1) if ".lora_A." in name else weight for name, weight in weights.items()},
        "ADAPTER_BASE_MISMATCH",
    ),
    "half a pair": (None, lambda weights: dict(list(weights.items())[1:]), "ADAPTER_TENSOR_MISSING"),
    "an embedding": (None, lambda weights: weights | {"base_model.model.model.embed_tokens.weight": torch.ones(64, 32)}, "ADAPTER_TENSOR_UNKNOWN"),
    "nothing": (None, lambda weights: {}, "ADAPTER_EMPTY"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(directory, foreign, what):
    config, weights, code = REFUSED[what]
    run = adopted(directory, foreign, config, weights)
    assert run.run() == 1
    assert run.result["error"]["code"] == code, run.result["error"]


def test_refuses_a_truncated_file(directory, foreign):
    run = adopted(directory, foreign)
    path = run.path / "import/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert run.run() == 1 and run.result["error"]["code"] == "ADAPTER_UNREADABLE"


def test_an_expression_that_never_ends_is_ended():
    import train
    from spec import TrainerError

    began = time.monotonic()
    with pytest.raises(TrainerError, match="longer than 1 s") as error, train.time_limit("matching", seconds=1):
        re.fullmatch(r"([a-z_.]+)+x", "model.layers.self_attn.q_projection_of_a_model")
    assert error.value.code == "PATTERN_TOO_COSTLY" and time.monotonic() - began < 5
