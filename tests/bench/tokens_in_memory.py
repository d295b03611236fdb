"""
Memory of a step by its tokens: a run of the trainer whose one batch has 50,000, then 200,000 tokens, over a vocabulary of 16,384.

    .venv/bin/python tests/bench/tokens_in_memory.py [--tokens 50000 200000]

The base is small (two layers of width 64), so that what a head needs would stand out: the logits of 200,000 tokens alone are 13 GB in float32.
It prints the peak of the process (resident set, from the kernel) for each run, and fails if that grows by more than the activations do.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "services/train/trainer"
sys.path.insert(0, str(TRAINER / "tests"))
import conftest  # noqa: E402  sets the threads, before torch is imported
import numpy as np  # noqa: E402

WIDTH, LAYERS, VOCABULARY, SEQUENCE, ROW = 64, 2, 16_384, 500, 5_000
# Float32 numbers that a token leaves for the backward pass, generously: some forty of the width for each layer, and the head's input.
ACTIVATIONS = 4 * WIDTH * (40 * LAYERS + 4)


def make_base(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=SEQUENCE,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_rows(tokens: int) -> list:
    random = np.random.default_rng(0)

    def sequence():
        ids = random.integers(3, VOCABULARY, SEQUENCE).tolist()
        return ids, [-100, *ids[1:]]

    return [[sequence() for _ in range(ROW // SEQUENCE)] for _ in range(tokens // ROW)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[50_000, 200_000])
    given = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        for tokens in given.tokens:
            rows = make_rows(tokens)
            training = {"per_device_train_batch_size": len(rows), "max_steps": 1, "learning_rate": 1e-3, "bf16": False}
            run = conftest.Directory(Path(folder) / str(tokens), base, rows=rows, held_out=rows[0:1], training=training, lora={"lora_dropout": 0.0})
            process = subprocess.Popen([sys.executable, str(TRAINER / "train.py"), str(run.path)])
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0 or run.result["tokens_seen"] != tokens:
                sys.exit(f"the run of {tokens} tokens ended with {process.returncode}: {run.result['error']}")
            peaks.append(used.ru_maxrss * 1024)
            whole = tokens * VOCABULARY * 4
            seconds = run.result["phases"]["train"]
            print(
                f"{tokens:>9,} tokens in one batch: peak {peaks[-1] / 2**30:5.2f} GiB, {seconds:.0f} s; the logits would be {whole / 2**30:.1f} GiB", flush=True
            )
    more = (peaks[-1] - peaks[0]) / (given.tokens[-1] - given.tokens[0])
    print(f"{more / 1024:.1f} KiB for each further token, of which activations may be {ACTIVATIONS / 1024:.0f}; load {os.getloadavg()[0]:.1f}")
    if more > ACTIVATIONS:
        sys.exit("memory grows with the tokens by more than the activations")


if __name__ == "__main__":
    main()
