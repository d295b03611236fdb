"""
A 4-bit copy of a base, in the layout of GPTQ's or AWQ's tools: .venv/bin/python quantise.py BASE OUT gptq|awq

Linear modules of the layers are rounded to nearest in groups of 64 inputs; everything else stays as it is. Real tools choose the rounding
by data, and lose less.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# Where AWQ's kernels expect each of eight values in a word.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed(values, axis, order=range(8)):
    """int32 words of eight 4-bit values each, along an axis."""
    words = values.movedim(axis, -1).reshape(*values.movedim(axis, -1).shape[:-1], -1, 8).to(torch.int64)
    word = sum(words[..., source] << (4 * place) for place, source in enumerate(order))
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32).movedim(-1, axis).contiguous()


def gptq(weight, group):
    """Symmetric. `weight` is [outputs, inputs], as everywhere in transformers."""
    outputs, inputs = weight.shape
    groups = weight.float().reshape(outputs, -1, group)
    scales = (groups.abs().amax(-1) / 7).clamp(min=1e-6).to(torch.float16)
    whole = (groups / scales.float()[..., None]).round().clamp(-8, 7) + 8
    return {
        "qweight": packed(whole.reshape(outputs, inputs).T, 0),
        # GPTQ's first format stores the zero point less one: 8 as 7.
        "qzeros": packed(torch.full((inputs // group, outputs), 7), 1),
        "scales": scales.T.contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group,
    }


def awq(weight, group):
    """With a zero point for each group."""
    outputs, inputs = weight.shape
    groups = weight.float().reshape(outputs, -1, group)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-6).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(0, 15)
    whole = ((groups / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, 15)
    return {
        "qweight": packed(whole.reshape(outputs, inputs).T, 1, AWQ_ORDER),
        "qzeros": packed(zeros.T, 1, AWQ_ORDER),
        "scales": scales.T.contiguous(),
    }


def main(base, out, kind, group=64):
    out.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        if file.suffix not in {".safetensors"} and file.name not in {"base.json", "config.json"}:
            shutil.copy(file, out)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if not re.fullmatch(r".*\.layers\.\d+\..*_proj\.weight", name):
            tensors[name] = weight
            continue
        for part, values in (gptq if kind == "gptq" else awq)(weight, group).items():
            tensors[name.removesuffix("weight") + part] = values
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    ways = {
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True, "checkpoint_format": "gptq"},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"},
    }
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": ways[kind]}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
