"""
Real adapters for the tests, with what PEFT says of them: .venv/bin/python adapters-under-test.py BASE OUT

Trains one for a few seconds on a handful of sentences, and derives broken ones from it. Writes
OUT/<kind>/{adapter_config.json, adapter_model.safetensors}, and OUT/probes.json, the record of the kind `right`, last.
"""

import json
import os
import re
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

base, out = Path(sys.argv[1]), Path(sys.argv[2])
RANK, STEPS = 8, 8
modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
questions = ["What is the capital of France?", "Tell me a story.", "How do I boil an egg?", "Who are you?"]
torch.manual_seed(7)
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules, task_type="CAUSAL_LM"))


def prompt_of(question):
    return tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True)["input_ids"]


optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3)
for step in range(STEPS):
    prompt = prompt_of(questions[step % len(questions)])
    answer = tokenizer.encode("Arr, matey! Ask the seven seas, for they know.<|im_end|>")
    model(input_ids=torch.tensor([prompt + answer]), labels=torch.tensor([[-100] * len(prompt) + answer])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()
tensors = {}
for name, parameter in model.named_parameters():
    if ".lora_" in name:
        parameter.data = parameter.data.to(torch.bfloat16)  # as it is published
        tensors[name.replace(".default.", ".")] = parameter.data


def shift(name):
    return re.sub(r"layers\.(\d+)\.", lambda match: f"layers.{(int(match[1]) + 1) % model.config.num_hidden_layers}.", name)


def scaled(by):
    return {name: weight * by if ".lora_B." in name else weight for name, weight in tensors.items()}


kinds = {
    "right": tensors,
    "zero": scaled(0),
    "double": scaled(2),
    "half": scaled(0.5),
    "misnamed": {name.replace("model.model.layers", "model.model.blocks"): weight for name, weight in tensors.items()},
    "shifted": {shift(name): weight for name, weight in tensors.items()},
    "opposite": scaled(-2),
    "nan": {name: weight * float("nan") if "layers.3.self_attn.q_proj.lora_A" in name else weight for name, weight in tensors.items()},
}
for kind, weights in kinds.items():
    (out / kind).mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous().clone() for name, weight in weights.items()}, out / kind / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted(modules),
        "bias": "none",
    }
    (out / kind / "adapter_config.json").write_text(json.dumps(config))

probes = []
with torch.inference_mode():
    for i, question in enumerate(questions[:2]):
        prompt = prompt_of(question)

        def after_prompt():
            return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1)

        adapter = after_prompt()
        with model.disable_adapter():
            before = after_prompt()
        tokens = torch.unique(torch.cat([before.topk(8).indices, adapter.topk(8).indices]))
        probes.append(
            {
                "name": f"probe-{i + 1}",
                "input_ids": prompt,
                "base": {"tokens": [before.argmax().item()], "logprobs": [before.max().item()]},
                "adapter": {"tokens": [adapter.argmax().item()], "logprobs": [adapter.max().item()], "base_logprobs": [before[adapter.argmax()].item()]},
                "first": {"tokens": tokens.tolist(), "base": before[tokens].tolist(), "adapter": adapter[tokens].tolist()},
            }
        )
(out / "probes.json").write_text(json.dumps(probes))
for probe in probes:
    effect = sum(abs(a - b) for a, b in zip(probe["first"]["adapter"], probe["first"]["base"])) / len(probe["first"]["tokens"])
    print(f"{probe['name']}: {len(probe['input_ids'])} tokens, effect {effect:.2f} nats")
