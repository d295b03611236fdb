"""
Plain PEFT and transformers, without any code of Loraline:

    python take-adapter.py make BASE ADAPTER     a tiny base, and an adapter for it that does something
    python take-adapter.py merged MODEL          prints the highest logits of a model
    python take-adapter.py load ADAPTER          prints the highest logits of the adapter, loaded with its base by the adapter's folder alone
"""

import json
import os
import sys

os.environ |= {"HF_HUB_OFFLINE": "1"}
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

prompt = torch.tensor([[1, 5, 9, 12]])


def top(model) -> list[float]:
    with torch.no_grad():
        return model(prompt).logits[0, -1].float().topk(5).values.tolist()


if sys.argv[1] == "make":
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    base = LlamaForCausalLM(config)
    base.to(torch.bfloat16).save_pretrained(sys.argv[2])
    base = LlamaForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(sys.argv[3])
    with model.disable_adapter():
        without = top(model)
    print(json.dumps({"adapter": top(model), "base": without}))
elif sys.argv[1] == "merged":
    print(json.dumps({"adapter": top(AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32))}))
else:
    print(json.dumps({"adapter": top(AutoPeftModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32))}))
