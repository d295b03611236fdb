"""A tiny random Llama, shards made on the fly, and the trainer as its users run it: a process with a directory."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

TRAINER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TRAINER))
# One thread: the tiny model does not gain from more, tests share the machine, and a process with one may fork.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# transformers converts weights in threads, which torch refuses in a process that was forked.
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
ENVIRONMENT = dict(os.environ)

VOCABULARY = 64
PROBE = {"name": "first", "input_ids": [1, 5, 9, 12]}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def make_tiny_base(directory: Path, width: int = 32) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 3 // 2,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.4,  # large enough that tokens depend on each other, so that a leak shows
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def make_rows(count: int, seed: int, packed: int = 3, prompt: int = 4) -> list[list[tuple[list[int], list[int]]]]:
    """Rows of `packed` sequences with a learnable rule: after the prompt each token is the one before it plus three."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        sequences = []
        for _ in range(packed):
            start = random.integers(3, VOCABULARY, size=prompt).tolist()
            answer = [(start[-1] + 3 * (i + 1)) % (VOCABULARY - 3) + 3 for i in range(int(random.integers(3, 9)))] + [2]
            sequences.append((start + answer, [-100] * prompt + answer))
        rows.append(sequences)
    return rows


def make_pairs(count: int, seed: int, packed: int = 2, prompt: int = 4, unpaired: bool = False) -> list[list[tuple[list[int], list[int], int]]]:
    """
    Rows of `packed` pairs: (tokens, labels, side), chosen then rejected. The chosen answer counts up by three, the rejected one down
    by five. `unpaired`: the same answers, each with a prompt of its own, good and bad in random order.
    """
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        sequences = []
        for _ in range(packed):
            start = random.integers(3, VOCABULARY, size=prompt).tolist()
            for side, step in ((1, 3), (0, -5)):
                answer = [(start[-1] + step * (i + 1)) % (VOCABULARY - 3) + 3 for i in range(int(random.integers(2, 8)))] + [2]
                sequences.append((start + answer, [-100] * prompt + answer, side))
                if unpaired:
                    start = random.integers(3, VOCABULARY, size=prompt).tolist()
        if unpaired:
            sequences = [sequences[i] for i in random.permutation(len(sequences))]
        rows.append(sequences)
    return rows


def write_shard(path: Path, rows) -> None:
    """Rows of sequences (tokens, labels), or (tokens, labels, side)."""
    columns = {"input_ids": [], "labels": [], "seq_lengths": []}
    if rows and rows[0] and len(rows[0][0]) == 3:
        columns["sides"] = [[side for _, _, side in sequences] for sequences in rows]
        rows = [[sequence[:2] for sequence in sequences] for sequences in rows]
    for sequences in rows:
        columns["input_ids"].append([token for tokens, _ in sequences for token in tokens])
        columns["labels"].append([label for _, labels in sequences for label in labels])
        columns["seq_lengths"].append([len(tokens) for tokens, _ in sequences])
    table = pa.table({name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


class Directory:
    """A trainer directory, filled as the courier fills it, and ways to run the trainer on it."""

    def __init__(self, path: Path, base: Path, lora=None, training=None, rows=None, held_out=None, probes=(PROBE,), method=None):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        os.symlink(base, path / "base")
        write_shard(path / "shards/train-00000.arrow", make_rows(12, seed=1) if rows is None else rows)
        if held_out is None:
            held_out = make_rows(4, seed=2, packed=1)
        if held_out:
            write_shard(path / "shards/eval-00000.arrow", held_out)
        self.spec = {
            "version": 1,
            "run_id": "01KB000000000000000000RN01",
            "attempt": 1,
            "base": {"name": "tiny", "revision": "r1", "digest": "sha256:" + "0" * 64},
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **(lora or {})},
            "training": {
                "per_device_train_batch_size": 2,
                "num_train_epochs": 2,
                "learning_rate": 0.02,
                "save_steps": 3,
                "seed": 7,
                **(training or {}),
            },
            "probes": list(probes),
        }
        if method is not None:
            self.spec["method"] = method
        (path / "spec.json").write_text(json.dumps(self.spec))

    def start(self) -> subprocess.Popen:
        """Runs the trainer as the courier does."""
        return subprocess.Popen([sys.executable, str(TRAINER / "train.py"), str(self.path)], env=ENVIRONMENT)

    def run(self) -> int:
        """Runs the trainer in this process, where torch is already imported. Returns the exit code."""
        import train
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # otherwise the next run in this process cannot choose its dtype
        return train.main(self.path)

    def run_and_die(self, at) -> None:
        """Runs the trainer in a forked child. `at` is called in the child and makes it kill itself at some point."""
        child = os.fork()
        if child == 0:
            try:
                at()
                self.run()
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    @property
    def result(self) -> dict:
        return json.loads((self.path / "result.json").read_text())

    def lines(self, kind: str) -> list[dict]:
        lines = [json.loads(line) for line in (self.path / "progress.jsonl").read_text().splitlines()]
        return [line for line in lines if line["type"] == kind]


@pytest.fixture
def directory(tmp_path, tiny_base):
    made = []

    def make(name: str = "run", base: Path = tiny_base, **options) -> Directory:
        made.append(Directory(tmp_path / name, base, **options))
        return made[-1]

    return make
