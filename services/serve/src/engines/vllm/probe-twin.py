"""
What PEFT says of the adapters of adapters-under-test.py on a quantised base: .venv/bin/python probe-twin.py TWIN ADAPTERS OUT

Writes OUT/{right,weak}.json, the probes recorded with the unpacked weights, and OUT/layer-zero/, the right adapter without one layer.
"""

import json
import os
import re
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
sys.path.insert(0, str(Path(__file__).parents[4] / "train/trainer"))
import packing  # noqa: F401  registers the attention
import torch
import unpack
from peft import PeftModel
from safetensors.torch import load_file, save_file

twin, adapters, out = map(Path, sys.argv[1:])
out.mkdir(parents=True, exist_ok=True)


@torch.inference_mode()
def after(model, prompt):
    return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1)


for kind, record in (("right", "probes.json"), ("weak", "weak-probes.json")):
    quantised = unpack.packing_of(twin)
    if quantised is None:
        sys.exit(f"{twin} is not quantised")
    base = unpack.load(twin, quantised, torch.bfloat16, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, adapters / kind).to(torch.bfloat16).eval()
    probes = json.loads((adapters / record).read_text())
    for probe in probes:
        adapter = after(model, probe["input_ids"])
        with model.disable_adapter():
            before = after(model, probe["input_ids"])
        tokens = torch.unique(torch.cat([before.topk(32).indices, adapter.topk(32).indices]))
        probe["first"] = {"tokens": tokens.tolist(), "base": before[tokens].tolist(), "adapter": adapter[tokens].tolist()}
    (out / f"{kind}.json").write_text(json.dumps(probes))
    rows = [abs(a - b) for probe in probes for a, b in zip(probe["first"]["adapter"], probe["first"]["base"], strict=True)]
    print(f"{kind}: {len(probes)} prompts, effect {sum(rows) / len(rows):.2f}")

broken = out / "layer-zero"
broken.mkdir(exist_ok=True)
weights = load_file(adapters / "right/adapter_model.safetensors")
kept = {name: weight * 0 if re.search(r"layers\.29\..*lora_B", name) else weight for name, weight in weights.items()}
save_file(kept, broken / "adapter_model.safetensors", metadata={"format": "pt"})
(broken / "adapter_config.json").write_text((adapters / "right/adapter_config.json").read_text())
