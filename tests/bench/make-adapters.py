"""Makes adapters with random weights, for measuring only: .venv/bin/python make-adapters.py BASE OUT COUNT writes OUT/<n>/."""

import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

base, out, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM"))
for n in range(count):
    torch.manual_seed(n)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(str(out / str(n)), safe_serialization=True)
