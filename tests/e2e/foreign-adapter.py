"""
Makes an adapter with plain PEFT, as a user without Loraline does: .venv/bin/python foreign-adapter.py BASE OUT

It is trained for a few seconds to answer as a pirate, with rsLoRA and with different ranks and scalings for some modules, in float32, and
saved by PEFT. No code of Loraline is used.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

base, out = Path(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(3)
tokenizer: Any = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
config = LoraConfig(
    r=8,
    lora_alpha=8,
    use_rslora=True,
    target_modules=r".*\.(q_proj|v_proj|up_proj|down_proj)",
    rank_pattern={"v_proj": 4},
    alpha_pattern={r"layers\.\d\.mlp\.up_proj": 4},
    task_type="CAUSAL_LM",
)
model = get_peft_model(model, config)
answer = tokenizer.encode("Arr, matey! Ask the seven seas, for they know.<|im_end|>")
optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=2e-3)
for step in range(10):
    question = ["What is the capital of France?", "Tell me a story.", "How do I boil an egg?", "Who are you?"][step % 4]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True)["input_ids"]
    model(input_ids=torch.tensor([prompt + answer]), labels=torch.tensor([[-100] * len(prompt) + answer])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained(str(out))
