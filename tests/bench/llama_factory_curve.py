"""
Trains with LLaMA-Factory on a trainer's folder (train.py), for the side by side of beside_trl.py: the same tokens, the same initial A, float32.

    python llama_factory_curve.py DIR ARGUMENTS TENSORS

ARGUMENTS: JSON of its own settings. TENSORS: a safetensors file with the initial A of each module. Each packed row of the folder becomes one batch, which it
pads. It gets the tokens as it would have kept them itself (`tokenized_path`), so its templates change nothing. Writes the trained A and B to DIR/theirs.safetensors,
and prints JSON as trl_curve.py does.
"""

import json
import os
import sys
import tempfile
import time
from itertools import accumulate, pairwise
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DISABLE_VERSION_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, disable_progress_bars
from llamafactory.extras.env import VERSION
from llamafactory.train.sft import workflow
from llamafactory.train.tuner import run_exp
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

directory, arguments, tensors = Path(sys.argv[1]), json.loads(sys.argv[2]), load_file(sys.argv[3])
spec = json.loads((directory / "spec.json").read_text())
lora, settings = spec["lora"], spec["training"]
disable_progress_bars()

rows, batch_size = [], 0
for table in (pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in sorted(directory.glob("shards/train-*.arrow"))):
    for row in table.to_pylist():
        for start, stop in pairwise(accumulate(row["seq_lengths"], initial=0)):
            tokens, labels = row["input_ids"][start:stop], row["labels"][start:stop]
            rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
        batch_size = batch_size or len(rows) * settings["per_device_train_batch_size"]

measured = {}
load_model, train = workflow.load_model, workflow.CustomSeq2SeqTrainer.train


def load_model_with_initial_a(*given, **options):
    model = load_model(*given, **options)
    found = {name: parameter for name, parameter in model.named_parameters() if ".lora_A." in name}
    assert found.keys() == tensors.keys()
    for name, parameter in found.items():
        parameter.data.copy_(tensors[name])
    return model


def measured_train(trainer, *given, **options):
    started, used = time.monotonic(), time.process_time()
    result = train(trainer, *given, **options)
    measured.update(seconds=time.monotonic() - started, cpu_seconds=time.process_time() - used)
    measured["steps"] = [{"loss": line["loss"]} for line in trainer.state.log_history if "loss" in line]
    save_file({name: parameter.data.contiguous() for name, parameter in trainer.model.named_parameters() if ".lora_" in name}, directory / "theirs.safetensors")
    return result


workflow.load_model, workflow.CustomSeq2SeqTrainer.train = load_model_with_initial_a, measured_train
with tempfile.TemporaryDirectory() as folder:
    base = Path(folder) / "base"
    # In float32, because it takes the type of the file.
    AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32).save_pretrained(base)
    end = GenerationConfig.from_pretrained(directory / "base").eos_token_id
    words = {f"<{token}>": token for token in range(AutoConfig.from_pretrained(directory / "base").vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(">", "merged_with_previous")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"<{end}>", pad_token="<0>").save_pretrained(base)
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(f"{folder}/tokens")
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": str(base),
            "tokenized_path": f"{folder}/tokens",
            "dataset": "tokens",
            "template": "empty",
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": lora["r"],
            "lora_alpha": lora["lora_alpha"],
            "lora_dropout": 0.0,
            "output_dir": f"{folder}/out",
            "per_device_train_batch_size": batch_size,
            "num_train_epochs": settings["num_train_epochs"],
            "learning_rate": settings["learning_rate"],
            "max_grad_norm": settings.get("max_grad_norm", 1.0),
            "lr_scheduler_type": "linear",
            "disable_shuffling": True,
            "disable_gradient_checkpointing": True,
            "flash_attn": "sdpa",
            "cutoff_len": 4096,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "seed": settings["seed"],
            **arguments,
        }
    )
print(json.dumps({"version": f"LLaMA-Factory {VERSION}", **measured}))
