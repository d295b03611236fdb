"""The merged model is what base and adapter are together, or there is none."""

import json
import shutil

import merge
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from spec import TrainerError
from transformers import AutoModelForCausalLM

INPUT = torch.tensor([[1, 5, 9, 12, 30, 22, 8]])


def adapter_of(tiny_base, directory, size=0.3):
    torch.manual_seed(2)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=size)
    model.save_pretrained(str(directory))
    return directory


def test_the_merged_model_answers_as_base_and_adapter(tiny_base, tmp_path):
    adapter = adapter_of(tiny_base, tmp_path / "adapter")
    said = merge.merge(tiny_base, adapter, tmp_path / "merged")
    assert said["agreement"] < 0.1 * said["effect"] and said["tokens"] > 4
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        without = base(INPUT).logits
        expected = PeftModel.from_pretrained(base, str(adapter))(INPUT).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
        actual = merged.float()(INPUT).logits
    assert (actual - expected).abs().max() < 0.1 * (expected - without).abs().max()
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == "bfloat16"


def test_an_adapter_that_rounding_swallows_is_not_merged(tiny_base, tmp_path):
    adapter = adapter_of(tiny_base, tmp_path / "adapter", size=1e-5)
    with pytest.raises(TrainerError) as caught:
        merge.merge(tiny_base, adapter, tmp_path / "merged")
    assert caught.value.code == "MERGE_DISAGREES"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_quantised_base_is_refused_by_name(tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(TrainerError, match="awq") as caught:
        merge.merge(base, adapter_of(tiny_base, tmp_path / "adapter"), tmp_path / "merged")
    assert caught.value.code == "MERGE_BASE_QUANTISED"
