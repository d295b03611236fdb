"""
The trainer on a GPU, in one go: parity, tokens per second, memory. At most eight minutes on an H200.

    make test-gpu
    python tests/bench/gpu.py [--seconds 480] [--json FILE]     # where only torch, transformers, accelerate and peft are
    python tests/bench/gpu.py --miniature                       # tiny bases on any machine; a test of the trainer runs this

Two bases are made here with random weights, in the shapes of Qwen2.5-7B and Qwen2.5-1.5B. Sequences of mixed lengths fill rows of 4096 tokens. For each base, as it is:

    parity      the self test of a run: the loss of each sequence in a packed row is that of the sequence alone, with transformers' eager attention
    loraline    the trainer's own loop on packed rows, with and without gradient checkpointing
    plain       the recipe of most tutorials, transformers.Trainer with padding, on the same sequences; its tokens are counted without the padding
    trl         TRL's SFTTrainer as it is by default, which pads too, on the same sequences, counted likewise; where trl and datasets are installed

And with its linear layers in 4 bits (quantization: nf4), where bitsandbytes is installed: parity and loraline.

It prints a table, writes JSON, and ends with 1 if a parity fails or nothing could be measured. What is not installed, or no longer fits into the time, is left out and
said to be.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from itertools import product
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "PASSIVE", "TRL_EXPERIMENTAL_SILENCE": "1"}
ROOT = Path(__file__).resolve().parents[2]
# By the files: train.py hides the last one from whoever asks for modules, also when a test imported it before.
MISSING = {name: PathFinder.find_spec(name) is None for name in ("trl", "datasets", "bitsandbytes")}
sys.path.insert(0, str(ROOT / "services/train/trainer"))

import attention  # noqa: E402
import head  # noqa: E402
import language_model  # noqa: E402
import loop  # noqa: E402
import numpy as np  # noqa: E402
import objectives  # noqa: E402
import packing  # noqa: E402
import quantised  # noqa: E402
import spec  # noqa: E402
import torch  # noqa: E402
import train  # noqa: E402
import transformers  # noqa: E402
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SEQUENCES_OF_THE_PLAIN_RECIPE = 4


@dataclass(frozen=True)
class Scale:
    """What is measured. row: tokens; rows: of a step; shapes: of Qwen2Config, by name."""

    row: int
    rows: int
    warm: int
    timed: int
    shapes: dict[str, dict[str, Any]]


FULL = Scale(
    row=4096,
    rows=2,
    warm=3,
    timed=8,
    shapes={
        "7B": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "1.5B": {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    },
)
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
MINIATURE = Scale(row=64, rows=2, warm=1, timed=2, shapes={"untied": TINY | {"tie_word_embeddings": False}, "tied": TINY | {"tie_word_embeddings": True}})


# --- what is trained on -----------------------------------------------------------------------------------------------


class Rows(packing.Rows):
    """Rows that are made at random, and not read from shards. Each is full."""

    def __init__(self, scale: Scale, count: int, vocabulary: int):
        random = np.random.default_rng(0)
        self.made = []
        for _ in range(count):
            lengths = []
            while (left := scale.row - sum(lengths)) > 0:
                lengths.append(int(min(left, max(scale.row // 64, random.lognormal(np.log(scale.row / 12), 0.8)))))
            ids = random.integers(3, vocabulary, scale.row).astype(np.int32)
            labels = ids.copy()
            for end, length in zip(np.cumsum(lengths), lengths, strict=True):
                labels[end - length : end - length + max(1, length // 3)] = -100
            self.made.append({"input_ids": ids, "labels": labels, "seq_lengths": np.array(lengths, dtype=np.int32)})

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict:
        return self.made[index]

    def tokens(self) -> np.ndarray:
        return np.array([len(row["input_ids"]) for row in self.made])

    def alone(self) -> list[dict]:
        """The tokens and labels of each sequence."""
        return [{name: sequence[name] for name in ("input_ids", "labels")} for row in self.made for sequence in packing.sequences_of(row)]


class Padded:
    """The collator of the plain recipe: what transformers.DataCollatorForSeq2Seq makes of such rows. Notes the tokens of each batch."""

    def __init__(self):
        self.tokens: list[int] = []

    def __call__(self, sequences: list[dict]) -> dict:
        lengths = [len(sequence["input_ids"]) for sequence in sequences]
        self.tokens.append(sum(lengths))

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([[*sequence[name].tolist(), *[filler] * (max(lengths) - len(sequence[name]))] for sequence in sequences])

        mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
        return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask}


# --- what is measured -------------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Seconds from the end of the warm steps to the end of the last one."""

    def __init__(self, warm: int):
        self.warm, self.began, self.seconds = warm, 0.0, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (self.warm, state.max_steps):
            if ON_GPU:
                torch.cuda.synchronize()
            if state.global_step == self.warm:
                self.began = time.perf_counter()
            else:
                self.seconds = time.perf_counter() - self.began


def arguments(scale: Scale, folder: str, batch: int, checkpointing: bool, kind=TrainingArguments, **further):
    return kind(
        output_dir=folder,
        per_device_train_batch_size=batch,
        max_steps=scale.warm + scale.timed,
        learning_rate=1e-4,
        bf16=ON_GPU,
        logging_steps=scale.warm + scale.timed,
        save_strategy="no",
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        use_cpu=not ON_GPU,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=ON_GPU,
        **further,
    )


def ours(model, scale: Scale, rows: Rows, folder: str, checkpointing: bool) -> tuple[int, float]:
    """Tokens of the timed steps, and their seconds."""
    attention.use(model.get_base_model(), attention.NAME)
    trainer = loop.LoraTrainer(
        objective=objectives.Supervised(0.0),
        loraplus_lr_ratio=None,
        neftune_noise_alpha=None,
        model=model,
        args=arguments(scale, folder, scale.rows, checkpointing),
        train_dataset=rows,
    )
    trainer.meter = loop.Meter()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock := Clock(scale.warm))
    trainer.train()
    return scale.rows * scale.row * scale.timed, clock.seconds


def plain(model, scale: Scale, rows: Rows, folder: str, checkpointing: bool) -> tuple[int, float]:
    attention.use(model.get_base_model(), "sdpa")
    collator, sequences = Padded(), rows.alone()
    trainer = Trainer(model=model, args=arguments(scale, folder, SEQUENCES_OF_THE_PLAIN_RECIPE, checkpointing), train_dataset=sequences, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock := Clock(scale.warm))
    trainer.train()
    return sum(collator.tokens[scale.warm : scale.warm + scale.timed]), clock.seconds


def by_trl(model, scale: Scale, rows: Rows, folder: str, checkpointing: bool) -> tuple[int, float]:
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer  # it has an environment of its own; see trl.in

    disable_progress_bars()
    attention.use(model.get_base_model(), "sdpa")
    words = {f"<{token}>": token for token in range(model.config.vocab_size)}  # the rows are tokens already; it asks for a tokenizer all the same
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<0>")), eos_token="<1>", pad_token="<0>")
    trainer: Any = SFTTrainer(
        model=model,
        args=arguments(scale, folder, SEQUENCES_OF_THE_PLAIN_RECIPE, checkpointing, SFTConfig, max_length=scale.row),
        train_dataset=Dataset.from_list([{name: values.tolist() for name, values in sequence.items()} for sequence in rows.alone()]),
        processing_class=tokenizer,
    )
    tokens, collate = [], trainer.data_collator

    def counted(sequences: list[dict]) -> dict:
        tokens.append(sum(len(sequence["input_ids"]) for sequence in sequences))
        return collate(sequences)

    trainer.data_collator = counted
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock := Clock(scale.warm))
    trainer.train()
    return sum(tokens[scale.warm : scale.warm + scale.timed]), clock.seconds


@dataclass(frozen=True)
class Cell:
    """needs: packages that not every machine has."""

    what: str
    run: Callable[..., tuple[int, float]]
    needs: tuple[str, ...] = ()


# By what the base's linear layers are held in.
CELLS = {
    None: [Cell("loraline", ours), Cell("plain", plain), Cell("trl", by_trl, ("trl", "datasets"))],
    "nf4": [Cell("loraline", ours, ("bitsandbytes",))],
}


def measure(model, scale: Scale, rows: Rows, run, checkpointing: bool) -> dict:
    cell: dict[str, Any] = {}
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if checkpointing:
        model.enable_input_require_grads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            tokens, seconds = run(model, scale, rows, folder, checkpointing)
        cell |= {"tokens_per_second": round(tokens / seconds, 1), "seconds_per_step": round(seconds / scale.timed, 4)}
    except torch.OutOfMemoryError:
        cell["note"] = "out of memory"
    if checkpointing:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
    model.zero_grad(set_to_none=True)
    vars(model).pop("forward", None)  # accelerate's
    cell["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2) if ON_GPU else None
    return cell


def parity(model, scale: Scale, rows: Rows) -> dict:
    config = model.config
    shape = (torch.device("cuda", torch.cuda.current_device()), torch.bfloat16, config.num_attention_heads, config.num_key_value_heads) if ON_GPU else None
    kernel = shape is not None and attention.varlen_works(*shape, config.hidden_size // config.num_attention_heads)
    found: dict[str, Any] = {"attention": "varlen" if kernel else "one sequence after the other"}
    try:
        found |= {"largest_difference": packing.prove_packing(model, rows, scale.rows, max_rows=8, max_tokens=scale.row * 4)}
    except spec.TrainerError as error:
        found["error"] = str(error)
    return found | {"head_in_chunks": getattr(head.head_of(model), "is_all", None)}


def make_base(shape: dict, quantization: str | None):
    """A base with random weights, on the device, in the trainer's number format; with `quantization` its linear layers packed."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen2ForCausalLM._from_config(Qwen2Config(**shape), dtype=torch.bfloat16 if ON_GPU else torch.float32, attn_implementation=attention.NAME)
    model.config.use_cache = False
    if quantization is not None:
        for name, module in language_model.linear_modules(model).items():
            with torch.device("meta"):
                packed = quantised.QuantisedLinear(module.in_features, module.out_features, module.bias is not None, quantization)
            packed.weight = torch.nn.Parameter(packed.pack(module.weight.data), requires_grad=False)
            packed.bias = module.bias
            model.set_submodule(name, packed)
    return model.eval()


def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--json", type=Path, default=ROOT / ".cache/reports/test-gpu.json")
    options = parser.parse_args(given)
    if not ON_GPU and not options.miniature:
        print("There is no GPU here. --miniature runs the same with tiny bases.")
        return 1
    scale, began = MINIATURE if options.miniature else FULL, time.monotonic()
    if options.miniature:
        head.LOGITS_AT_ONCE = 1 << 12  # so that the head is in chunks here too
    device = torch.cuda.get_device_name() if ON_GPU else "CPU"
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__, "row": scale.row, "rows": scale.rows}
    result |= {"miniature": options.miniature, "parity": [], "cells": []}
    print(f"{device}, torch {torch.__version__}, rows of {scale.row} tokens, {scale.rows} in each step")
    for (name, shape), (quantization, cells) in product(scale.shapes.items(), CELLS.items()):
        about: dict[str, Any] = {"base": name, "quantization": quantization}
        missing = {cell: [each for each in cell.needs if MISSING[each]] for cell in cells}
        late = time.monotonic() - began > options.seconds * 0.85
        model = None
        if not late and not all(missing.values()):
            rows = Rows(scale, scale.rows * (scale.warm + scale.timed), shape["vocab_size"])
            model = train.add_lora(make_base(shape, quantization), spec.check_lora({"r": 8, "lora_alpha": 16}), seed=0)
            result["parity"].append(about | parity(model, scale, rows))
            print(json.dumps(result["parity"][-1]), flush=True)
        for cell, checkpointing in product(cells, (False, True)):
            if missing[cell]:
                found = {"note": f"left out: {', '.join(missing[cell])} not installed"}
            elif model is None or time.monotonic() - began > options.seconds * 0.85:
                found = {"note": "left out: no time"}
            else:
                found = measure(model, scale, rows, cell.run, checkpointing)
            result["cells"].append({"what": cell.what, **about, "gradient_checkpointing": checkpointing} | found)
            speed = f"{found['tokens_per_second']} tokens/s" if "tokens_per_second" in found else found["note"]
            peak = f"{found['peak_gib']} GiB" if found.get("peak_gib") is not None else ""
            print(f"{name:8}{quantization or '':5}{cell.what:10}{'checkpointing' if checkpointing else '':15}{speed:>20}{peak:>12}", flush=True)
        del model
        if ON_GPU:
            torch.cuda.empty_cache()
    result["seconds"] = round(time.monotonic() - began, 1)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['seconds']} s; {options.json}")
    return 1 if any("error" in each for each in result["parity"]) or not any("tokens_per_second" in cell for cell in result["cells"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
