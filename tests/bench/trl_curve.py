"""
Trains with TRL, or with transformers' own Trainer, on a trainer's folder (train.py), for the side by side of beside_trl.py: the same tokens, the
same initial A, float32.

    python trl_curve.py DIR TRAINER ARGUMENTS TENSORS

TRAINER: SFT, DPO, ORPO, CPO or KTO of TRL; or Seq2Seq, the recipe of most tutorials: transformers.Trainer with DataCollatorForSeq2Seq, which pads.
ARGUMENTS: JSON for its config. TENSORS: a safetensors file with the initial A of each module. Each packed row of the folder becomes one batch.
Writes the trained A and B to DIR/theirs.safetensors. Prints JSON: {"version", "seconds", "cpu_seconds", "steps": [{"loss", "margin"}]} (SFT and
Seq2Seq have no margin). The tokenizer is a mapping of ids to words, so TRL's own preparation of rows brings exactly the ids.
"""

import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
import numpy as np
import pyarrow as pa
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

directory, kind, arguments, tensors = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), load_file(sys.argv[4])
spec = json.loads((directory / "spec.json").read_text())
lora, settings = spec["lora"], spec["training"]
disable_progress_bars()
model = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32)

words = {f"<{token}>": token for token in range(model.config.vocab_size)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split(">", "merged_with_previous")
end = model.generation_config.eos_token_id
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"<{end}>", pad_token="<0>")


def text(tokens) -> str:
    return "".join(f"<{token}>" for token in tokens)


rows, batch_size = [], 0
for table in (pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in sorted(directory.glob("shards/train-*.arrow"))):
    for row in table.to_pylist():
        sequences = []
        for (start, stop), side in zip(pairwise([0, *np.cumsum(row["seq_lengths"])]), row.get("sides", [1] * len(row["seq_lengths"])), strict=True):
            first = start + next(i for i, label in enumerate(row["labels"][start:stop]) if label != -100)
            sequences.append((text(row["input_ids"][start:first]), text(row["input_ids"][first:stop]), side))
        if kind == "Seq2Seq":
            for start, stop in pairwise([0, *np.cumsum(row["seq_lengths"])]):
                tokens, labels = row["input_ids"][start:stop], row["labels"][start:stop]
                rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
        elif kind == "SFT":
            rows += [{"prompt": prompt, "completion": answer} for prompt, answer, _ in sequences]
        elif kind == "KTO":
            rows += [{"prompt": prompt, "completion": answer, "label": side == 1} for prompt, answer, side in sequences]
        else:
            pairs = zip(sequences[0::2], sequences[1::2], strict=True)
            rows += [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for (prompt, chosen, _), (_, rejected, _) in pairs]
        batch_size = batch_size or len(rows) * settings["per_device_train_batch_size"]

adapter = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=lora["r"], lora_alpha=lora["lora_alpha"], lora_dropout=0.0)
further: dict[str, Any] = {"train_dataset": Dataset.from_list(rows)}
if kind == "Seq2Seq":
    trainer_class, config_class = transformers.Trainer, transformers.TrainingArguments
    model = get_peft_model(model, adapter)
    further["data_collator"] = transformers.DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True)
elif kind in ("SFT", "DPO", "KTO"):
    trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
elif kind == "ORPO":
    from trl.experimental.orpo import ORPOConfig as config_class
    from trl.experimental.orpo import ORPOTrainer as trainer_class
else:
    from trl.experimental.cpo import CPOConfig as config_class
    from trl.experimental.cpo import CPOTrainer as trainer_class
if kind != "Seq2Seq":
    arguments["max_length"] = 4096
    further |= {"processing_class": tokenizer, "peft_config": adapter}

with tempfile.TemporaryDirectory() as output:
    trainer: Any = trainer_class(
        model=model,
        args=config_class(
            output_dir=output,
            per_device_train_batch_size=batch_size,
            num_train_epochs=settings["num_train_epochs"],
            max_steps=settings.get("max_steps", -1),
            learning_rate=settings["learning_rate"],
            max_grad_norm=settings.get("max_grad_norm", 1.0),
            train_sampling_strategy="sequential",
            logging_steps=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=settings["seed"],
            **arguments,
        ),
        **further,
    )
    copied = 0
    for name, parameter in trainer.model.named_parameters():
        if ".lora_A." in name:
            parameter.data.copy_(tensors[name])
            copied += 1
    assert copied == len(tensors)
    started, used = time.monotonic(), time.process_time()
    trainer.train()
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - used

trained = {name: parameter.data.contiguous() for name, parameter in trainer.model.named_parameters() if ".lora_" in name}
save_file(trained, directory / "theirs.safetensors")
steps = [
    {"loss": line["loss"]} | ({"margin": line["rewards/margins"]} if "rewards/margins" in line else {}) for line in trainer.state.log_history if "loss" in line
]
version = f"transformers {transformers.__version__}" if kind == "Seq2Seq" else f"TRL {trl.__version__}"
print(json.dumps({"version": version, "seconds": seconds, "cpu_seconds": cpu_seconds, "steps": steps}))
