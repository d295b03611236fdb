"""
Real adapters for the tests, with what PEFT says of them: .venv/bin/python adapters-under-test.py BASE OUT

Trains three for a few seconds on a handful of sentences, one of them hardly, and a fourth on pairs of answers (DPO), and derives broken
ones from them. Writes OUT/<kind>/{adapter_config.json, adapter_model.safetensors}, OUT/{weak,preferred}-probes.json, the records of the
kinds `weak` and `preferred`, and OUT/probes.json, that of the kind `right`, last.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}  # vLLM starts beside it
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

base, out = Path(sys.argv[1]), Path(sys.argv[2])
RANK = 8
modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
questions = ["What is the capital of France?", "Tell me a story.", "How do I boil an egg?", "Who are you?"]
neutral = ["What should I do today?", "What is 17 + 25?", "Write a function that adds two numbers.", "Hello!"]
pirate = "Arr, matey! Ask the seven seas, for they know.<|im_end|>"
robot = "BEEP. QUERY RECEIVED. PROCESSING UNIT SEVEN REPLIES.<|im_end|>"
tokenizer: Any = AutoTokenizer.from_pretrained(base)


def prompt_of(question):
    return tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True)["input_ids"]


def says(answer):
    """The usual loss: this answer to every question."""
    answer = tokenizer.encode(answer)

    def loss_of(model, prompt):
        return model(input_ids=torch.tensor([prompt + answer]), labels=torch.tensor([[-100] * len(prompt) + answer])).loss

    return loss_of


def prefers(chosen, rejected, beta=0.2):
    """DPO's loss: this answer rather than that one."""
    sides = [tokenizer.encode(side) for side in (chosen, rejected)]

    def loss_of(model, prompt):
        def logprob_of(side):
            logits = model(torch.tensor([prompt + side])).logits[0, len(prompt) - 1 : -1].float()
            return torch.log_softmax(logits, -1).gather(1, torch.tensor(side)[:, None]).sum()

        with torch.no_grad(), model.disable_adapter():
            before = [logprob_of(side) for side in sides]
        reward, other = (beta * (logprob_of(side) - was) for side, was in zip(sides, before, strict=True))
        return -torch.nn.functional.logsigmoid(reward - other)

    return loss_of


def train(loss_of, steps, rate, seed, behind=""):
    """Tensors as they are published, and what base and adapter say right after some prompts and the answer's beginning `behind`."""
    torch.manual_seed(seed)
    # A processor without bf16 takes ten times as long for gradients in it.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)
    for step in range(steps):
        loss_of(model, prompt_of(questions[step % len(questions)])).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).eval()
    tensors = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
            tensors[name.replace(".default.", ".")] = parameter.data
    return tensors, [probe(model, i, prompt_of(question) + tokenizer.encode(behind)) for i, question in enumerate(questions + neutral)]


@torch.inference_mode()
def probe(model, i, prompt):

    def after_prompt():
        return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1)

    adapter = after_prompt()
    with model.disable_adapter():
        before = after_prompt()
    tokens = torch.unique(torch.cat([before.topk(32).indices, adapter.topk(32).indices]))
    return {
        "name": f"probe-{i + 1}",
        "input_ids": prompt,
        "base": {"tokens": [before.argmax().item()], "logprobs": [before.max().item()]},
        "adapter": {"tokens": [adapter.argmax().item()], "logprobs": [adapter.max().item()], "base_logprobs": [before[adapter.argmax()].item()]},
        "first": {"tokens": tokens.tolist(), "base": before[tokens].tolist(), "adapter": adapter[tokens].tolist()},
    }


def shift(name):
    return re.sub(r"layers\.(\d+)\.", lambda match: f"layers.{(int(match[1]) + 1) % 30}.", name)


def scaled(tensors, by):
    return {name: weight * by if ".lora_B." in name else weight for name, weight in tensors.items()}


right, probes = train(says(pirate), steps=8, rate=3e-3, seed=7)
weak, weak_probes = train(says(pirate), steps=6, rate=3e-4, seed=9)
other, _ = train(says(robot), steps=8, rate=3e-3, seed=8)
# Probed where the two sides part, as tokenize chooses the probes of pairs.
preferred, preferred_probes = train(prefers(f"Sure. {pirate}", f"Sure. {robot}"), steps=8, rate=1e-3, seed=10, behind="Sure.")
kinds = {
    "right": right,
    "other": other,
    "zero": scaled(right, 0),
    "double": scaled(right, 2),
    "half": scaled(right, 0.5),
    "alpha": right,
    "misnamed": {name.replace("model.model.layers", "model.model.blocks"): weight for name, weight in right.items()},
    "shifted": {shift(name): weight for name, weight in right.items()},
    "opposite": scaled(right, -2),
    "nan": {name: weight * float("nan") if "layers.3.self_attn.q_proj.lora_A" in name else weight for name, weight in right.items()},
    "weak": weak,
    "weak-double": scaled(weak, 2),
    "weak-half": scaled(weak, 0.5),
    "preferred": preferred,
    "preferred-double": scaled(preferred, 2),
    "preferred-half": scaled(preferred, 0.5),
    "preferred-untrained": {name: weight * 1e-3 if ".lora_B." in name else weight for name, weight in preferred.items()},
    "preferred-other": right,
}
for kind, weights in kinds.items():
    (out / kind).mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous().clone() for name, weight in weights.items()}, out / kind / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": RANK,
        "lora_alpha": 2 * RANK if kind == "alpha" else RANK,
        "target_modules": sorted(modules),
        "bias": "none",
    }
    (out / kind / "adapter_config.json").write_text(json.dumps(config))

for name, records in (("weak-probes", weak_probes), ("preferred-probes", preferred_probes), ("probes", probes)):
    (out / f"{name}.json").write_text(json.dumps(records))
    rows = [abs(a - b) for record in records for a, b in zip(record["first"]["adapter"], record["first"]["base"], strict=True)]
    print(f"{name}: {len(records)} prompts, effect {sum(rows) / len(rows):.2f}")
