"""
Adapters for the benchmark of the proof, broken copies of them, and what PEFT says of the right ones on each kind of base:
proof-adapters.py BASE OUT KIND=TYPE=FOLDER ...

Writes OUT/<adapter>/<fault>/ in PEFT's layout, OUT/<adapter>/<kind>.json (probes recorded on that base), and OUT/done last. FOLDER may be
packed by GPTQ or AWQ; then its weights are unpacked. TYPE is bfloat16 or float32.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[2] / "services/train/trainer"))
import packing  # noqa: F401  registers the attention
import torch
import unpack
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

base, out = Path(sys.argv[1]), Path(sys.argv[2])
kinds = [argument.split("=", 2) for argument in sys.argv[3:]]
questions = ["What is the capital of France?", "Tell me a story.", "How do I boil an egg?", "Who are you?"]
neutral = ["What should I do today?", "What is 17 + 25?", "Write a function that adds two numbers.", "Hello!"]
texts = ["Arr, matey! Ask the seven seas, for they know.<|im_end|>", "BEEP. QUERY RECEIVED. PROCESSING UNIT SEVEN REPLIES.<|im_end|>"]
modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Learning rate, steps: from strong to hardly trained.
strengths = [(3e-3, 8), (1e-3, 8), (6e-4, 8), (3e-4, 6)]
LAYERS = [0, 7, 15, 22, 29]
tokenizer: Any = AutoTokenizer.from_pretrained(base)
prompts = [
    tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True)["input_ids"]
    for question in questions + neutral
]


def load(folder: Path, dtype: torch.dtype):
    packed = unpack.packing_of(folder)
    if packed is not None:
        return unpack.load(folder, packed, dtype, attn_implementation="sdpa")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")


def lora(model):
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM"))


def train(text: str, rate: float, steps: int, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = lora(load(base, torch.float32))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate)
    answer = tokenizer.encode(text)
    for step in range(steps):
        prompt = prompts[step % len(questions)]
        model(input_ids=torch.tensor([prompt + answer]), labels=torch.tensor([[-100] * len(prompt) + answer])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach().to(torch.bfloat16) for name, parameter in model.named_parameters() if ".lora_" in name}


def faults_of(tensors: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    def scaled(by: float, where: str = ""):
        return {name: weight * by if ".lora_B." in name and where in name else weight for name, weight in tensors.items()}

    def exchanged(name: str) -> str:
        here, there = (".layers.7.", ".layers.8.") if ".layers.7." in name else (".layers.8.", ".layers.7.")
        return name.replace(here, there)

    return {
        "right": tensors,
        "half": scaled(0.5),
        "double": scaled(2),
        **{f"zeroed-{layer}": scaled(0, f".layers.{layer}.") for layer in LAYERS},
        "swapped": {name: tensors[exchanged(name)] for name in tensors},
        "other": other,
    }


def record(model) -> list[dict]:
    @torch.inference_mode()
    def after(prompt):
        return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1)

    probes = []
    for i, prompt in enumerate(prompts):
        adapter = after(prompt)
        with model.disable_adapter():
            before = after(prompt)
        tokens = torch.unique(torch.cat([before.topk(32).indices, adapter.topk(32).indices]))
        nothing = {"tokens": [], "logprobs": []}
        first = {"tokens": tokens.tolist(), "base": before[tokens].tolist(), "adapter": adapter[tokens].tolist()}
        probes.append({"name": f"probe-{i}", "input_ids": prompt, "base": nothing, "adapter": nothing | {"base_logprobs": []}, "first": first})
    return probes


trained = {
    f"{strength}-{text}": train(texts[text], rate, steps, seed=10 * strength + text) for strength, (rate, steps) in enumerate(strengths) for text in range(2)
}
for name, tensors in trained.items():
    other = trained[f"{name[:-1]}{1 - int(name[-1])}"]
    for fault, weights in faults_of(tensors, other).items():
        folder = out / name / fault
        folder.mkdir(parents=True, exist_ok=True)
        published = {tensor.replace(".default.", "."): weight.contiguous().clone() for tensor, weight in weights.items()}
        save_file(published, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.name, "r": 8, "lora_alpha": 8, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": sorted(modules)}))
for kind, dtype, folder in kinds:
    model = lora(load(Path(folder), getattr(torch, dtype))).eval()
    for name, tensors in trained.items():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name in tensors:
                parameter.data = tensors[parameter_name].to(getattr(torch, dtype))
        (out / name / f"{kind}.json").write_text(json.dumps(record(model)))
(out / "done").write_text("")
