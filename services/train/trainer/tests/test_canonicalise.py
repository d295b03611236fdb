"""The published adapter computes what the trained one did, in a form with nothing left to get wrong."""

import json
from typing import Any

import canonicalise
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from spec import TrainerError
from transformers import AutoModelForCausalLM

BASE = {"name": "tiny", "revision": "r1", "digest": "sha256:00"}
INPUT = torch.tensor([[1, 5, 9, 12, 30, 22, 8]])


def trained(tiny_base, **lora):
    """A PEFT model whose adapter is noise, as if trained, with weights that bf16 can hold."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn_like(parameter) * 0.2).bfloat16().float()
    return model.eval()


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True, "lora_alpha": 16},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": r".*layers\.[12]\.(self_attn\.(q|v)_proj|mlp\.up_proj)"},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}},
        {"alpha_pattern": {"v_proj": 64, "down_proj": 2}},
        {"rank_pattern": {"k_proj": 1, "o_proj": 9}, "alpha_pattern": {"k_proj": 4, "up_proj": 32}, "use_rslora": True},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    ],
    ids=["plain", "rslora", "layers", "regex", "rank_pattern", "alpha_pattern", "all-patterns", "exclude"],
)
def test_folded_equals_unfolded(tiny_base, tmp_path, lora):
    model = trained(tiny_base, **lora)
    with torch.no_grad():
        expected = model(INPUT).logits
        with model.disable_adapter():
            without = model(INPUT).logits
    tensors = canonicalise.canonical_tensors(model)
    made = canonicalise.write_adapter(tmp_path / "adapter", tensors, {"base": BASE}, 3)

    # As PEFT reads it back, knowing nothing of how it was trained.
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), tmp_path / "adapter").eval()
    with torch.no_grad():
        actual = read(INPUT).logits
    scale = (expected - without).abs().max()
    assert scale > 0.1
    assert (actual - expected).abs().max() < 0.02 * scale  # bf16 has eight bits

    # The trainer loads it in the same way for evaluation and probes.
    canonicalise.load_published(model, tensors)
    with torch.no_grad():
        model.float()
        assert torch.allclose(model(INPUT).logits, actual, atol=1e-4)

    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == made["rank"] == max(layer.r["default"] for layer in canonicalise.lora_layers(model).values())
    assert not config["use_rslora"] and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["target_modules"] == sorted(config["target_modules"]) == made["target_modules"]
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny", "r1")
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert {tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name} == {made["rank"]}
    assert made["parameters"] == sum(tensor.numel() for tensor in saved.values())


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_not_a_number_is_refused(tiny_base, part):
    model = trained(tiny_base)
    next(parameter for name, parameter in model.named_parameters() if part in name).data[0, 0] = float("nan")
    with pytest.raises(TrainerError) as caught:
        canonicalise.canonical_tensors(model)
    assert caught.value.code == "ADAPTER_INVALID" and part in str(caught.value)


def test_an_adapter_that_does_nothing_is_refused(tiny_base):
    model = trained(tiny_base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    with pytest.raises(TrainerError, match="changed nothing"):
        canonicalise.canonical_tensors(model)


def test_vllm_reads_the_config(tiny_base, tmp_path):
    """vLLM's own reader, without starting an engine."""
    helper = pytest.importorskip("vllm.lora.peft_helper")
    names = pytest.importorskip("vllm.lora.utils")
    tensors = canonicalise.canonical_tensors(trained(tiny_base, use_rslora=True, rank_pattern={"q_proj": 7}))
    canonicalise.write_adapter(tmp_path / "adapter", tensors, {"base": BASE}, 3)
    read = helper.PEFTHelper.from_local_dir(str(tmp_path / "adapter"), None)
    assert read._validate_features() == []
    assert (read.r, read.vllm_lora_scaling_factor) == (7, 1.0)
    for name in load_file(tmp_path / "adapter/adapter_model.safetensors"):
        module, is_a = names.parse_fine_tuned_lora_name(name)
        assert module.startswith("model.layers.") and is_a == ("lora_A" in name)
