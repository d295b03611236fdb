"""
Merges an adapter into its base: a model that needs no PEFT, and answers like the base with the adapter.

    python merge.py BASE ADAPTER OUT

BASE is a Hugging Face directory, ADAPTER is in PEFT's layout, OUT must not exist. Its weights are W + B·A, added in float32 and stored in
the base's type. Before OUT appears, the stored weights are read back and compared with base + adapter by the log-probabilities that both
give to what the adapter answers. Prints one line of JSON: {"agreement", "effect", "tokens"}, the first two in nats per token, or {"error"}.
Exit code 0: merged. 1: not, and nothing is left of OUT.

    MERGE_BASE_QUANTISED  MERGE_DISAGREES  BASE_UNREADABLE  ADAPTER_UNREADABLE
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from spec import TrainerError

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What the adapter itself does in these is more than enough to see whether the merged weights do the same.
PROMPTS = ["Who are you?", "What is the capital of France?", "Tell me a story.", "How do I boil an egg?"]
NEW_TOKENS = 24
# Rounding to bf16 moves log-probabilities a little; more than this share of what the adapter moves them is another model.
MOST_OF_EFFECT = 0.1


def merge(base_dir: Path, adapter_dir: Path, out: Path) -> dict:
    config = read_json(base_dir / "config.json")
    if config.get("quantization_config"):
        raise TrainerError(
            "MERGE_BASE_QUANTISED",
            f"{base_dir} is quantised ({config['quantization_config'].get('quant_method', 'unknown')}), and weights of so few bits cannot take up"
            " an adapter. Serve the adapter beside the base, or merge it into the base that the quantised one was made of.",
            "base",
        )
    import torch
    from language_model import auto_class_of, text_config
    from peft import PeftModel

    def load(directory: Path, dtype):
        return auto_class_of(directory).from_pretrained(directory, dtype=dtype, local_files_only=True).eval()

    try:
        stored_dtype = load(base_dir, "auto").dtype
        base = load(base_dir, torch.float32)
    except Exception as error:
        raise TrainerError("BASE_UNREADABLE", f"{base_dir} is not a model that transformers can load: {error}", "base") from error
    try:
        model = PeftModel.from_pretrained(base, str(adapter_dir)).eval()
    except Exception as error:
        raise TrainerError("ADAPTER_UNREADABLE", f"{adapter_dir} cannot be loaded on {base_dir}: {error}", str(adapter_dir)) from error

    sequences = [answered(model, prompt) for prompt in prompts_of(base_dir, text_config(base).vocab_size)]
    expected = [logprobs(model, *sequence) for sequence in sequences]
    with model.disable_adapter():
        without = [logprobs(model, *sequence) for sequence in sequences]

    merged: Any = model.merge_and_unload(safe_merge=True)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        merged.to(stored_dtype).save_pretrained(partial)
        for path in base_dir.iterdir():
            # The tokenizer, its template and the licence: all that is neither weights nor written anew.
            if path.is_file() and not (partial / path.name).exists() and not is_weights(path.name) and path.name not in ("base.json", "README.md"):
                shutil.copyfile(path, partial / path.name)
        written = load(partial, torch.float32)
        actual = [logprobs(written, *sequence) for sequence in sequences]
        agreement, effect = distance(expected, actual), distance(expected, without)
        if not agreement <= MOST_OF_EFFECT * effect:
            raise TrainerError(
                "MERGE_DISAGREES",
                f"the merged model differs from base + adapter by {agreement:.4f} nats per token, where the adapter moves the base by {effect:.4f}:"
                f" rounding to {str(stored_dtype).removeprefix('torch.')} takes too much of it. Serve the adapter beside the base.",
            )
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"agreement": agreement, "effect": effect, "tokens": sum(len(values) for values in actual)}


def is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json"))


def prompts_of(base_dir: Path, vocabulary: int) -> list[list[int]]:
    """The prompts as token ids, in the base's chat template if it has one. A base without a tokenizer gets fixed ids."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
    except Exception:
        return [[(7 * i + j) % vocabulary for j in range(1, 6)] for i in range(len(PROMPTS))]
    if not tokenizer.chat_template:
        return [tokenizer.encode(prompt) for prompt in PROMPTS]
    conversation = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"] for messages in conversation]


def answered(model, prompt: list[int]) -> tuple[list[int], int]:
    """The prompt with the greedy answer of the model, and where the answer begins."""
    import torch

    with torch.inference_mode():
        tokens = torch.tensor([prompt], device=model.device)
        ids = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, do_sample=False)
    return ids[0].tolist(), len(prompt)


def logprobs(model, tokens: list[int], begin: int) -> list[float]:
    """Natural log-probabilities of the answer's tokens, each given all before it."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens], device=model.device)).logits[0, begin - 1 : -1].float()
        return logits.log_softmax(-1).gather(-1, torch.tensor(tokens[begin:], device=model.device)[:, None])[:, 0].tolist()


def distance(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Mean |difference| per token."""
    pairs = [abs(a - b) for left, right in zip(ours, theirs, strict=True) for a, b in zip(left, right, strict=True)]
    return sum(pairs) / max(1, len(pairs))


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError("BASE_UNREADABLE", f"{path} cannot be read: {error}", "base") from error


def main() -> int:
    try:
        print(json.dumps(merge(*map(Path, sys.argv[1:4]))))
        return 0
    except TrainerError as error:
        print(json.dumps({"error": error.as_dict()}))
        return 1


if __name__ == "__main__":
    sys.exit(main())
