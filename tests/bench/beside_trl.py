"""
Training beside TRL, on the same tokens in the same order, with the same initial A, in float32:

    .venv/bin/python tests/bench/beside_trl.py [--write]             every method on a tiny base, 50 steps: the largest differences
    .venv/bin/python tests/bench/beside_trl.py --base DIR [--steps N] [--method supervised|dpo]     a real base, and the time of both

--write puts TRL's curves into services/train/trainer/tests/trl_curves.json, by which the trainer's tests check every method without TRL.
TRL's environment is made by tests/bench/trl-env.sh; TRL_PYTHON names another one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "services/train/trainer/tests"
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402  sets the threads, before torch is imported
import numpy as np  # noqa: E402
from trl_cases import CASES, directory_of, run_in_order  # noqa: E402

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py has it
TRL_PYTHON = os.environ.get("TRL_PYTHON", str(ROOT / ".cache/bench-trl/bin/python"))


def initial_a(directory: conftest.Directory, path: Path) -> Path:
    """Writes the A with which the trainer begins."""
    import torch
    import train
    from safetensors.torch import save_file

    spec = train.read_spec(directory.path / "spec.json")
    model = train.add_lora(train.load_base(directory.path, "float32"), spec["lora"], spec["training"]["seed"])
    save_file({name: parameter.data.to(torch.float32).clone() for name, parameter in model.named_parameters() if ".lora_A." in name}, path)
    return path


def trl(directory: conftest.Directory, kind: str, arguments: dict, threads: int) -> dict:
    tensors = initial_a(directory, directory.path / "initial.safetensors")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [TRL_PYTHON, str(ROOT / "tests/bench/trl_curve.py"), str(directory.path), kind, json.dumps(arguments), str(tensors)]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])


def largest(ours: list[dict], theirs: list[dict]) -> tuple[float, float]:
    """The largest difference of the losses, and of the margins where there are some."""
    pairs = list(zip(ours, theirs, strict=True))
    return max(abs(a["loss"] - b["loss"]) for a, b in pairs), max(abs(a["rewards_margin"] - b["margin"]) if "margin" in b else 0 for a, b in pairs)


def every_method(write: bool) -> None:
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "base").mkdir()
        base = conftest.make_tiny_base(Path(folder) / "base")
        for name, (_, kind, arguments) in CASES.items():
            directory = directory_of(name, Path(folder) / name, base)
            theirs = trl(directory, kind, arguments, threads=1)
            curves[name] = {"trl": theirs["version"], **{key: [round(step[key], 6) for step in theirs["steps"]] for key in theirs["steps"][0]}}
            loss, margin = largest(run_in_order(directory), theirs["steps"])
            print(f"{name}: {len(theirs['steps'])} steps, largest difference of the loss {loss:.1e}, of the margin {margin:.1e}", flush=True)
    if write:
        (TESTS / "trl_curves.json").write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(curve)}" for name, curve in curves.items()) + "\n}\n")


@contextmanager
def cpu_seconds_of_training():
    """Collects the CPU seconds of the reference pass and of the training, which a busy machine changes less than their durations."""
    import loop
    import preferences

    taken = []

    def timed(function):
        def call(*arguments, **options):
            started = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                taken.append(time.process_time() - started)

        return call

    with (
        patch.object(loop.LoraTrainer, "train", timed(loop.LoraTrainer.train)),
        patch.object(preferences.Preferences, "prepare", timed(preferences.Preferences.prepare)),
    ):
        yield taken


def real_base(base: Path, steps: int, pairs_a_step: int, method: str, threads: int) -> None:
    """
    Pairs of mixed lengths, as chats have them: prompts of 20 to 120 tokens, chosen answers of 10 to 60, rejected ones of 20 to 200.
    supervised: all answers are learned.
    """
    import torch

    torch.set_num_threads(threads)
    random, rows = np.random.default_rng(5), []
    for _ in range(steps):
        sequences = []
        for _ in range(pairs_a_step):
            prompt = random.integers(100, 40_000, size=random.integers(20, 120)).tolist()
            for side, (low, high) in ((1, (10, 60)), (0, (20, 200))):
                answer = random.integers(100, 40_000, size=random.integers(low, high)).tolist()
                sequences.append((prompt + answer, [-100] * len(prompt) + answer, side))
        rows.append(sequences)
    end = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    rows = [[([*tokens, end], [*labels, end], *([side] if method == "dpo" else [])) for tokens, labels, side in row] for row in rows]
    training = {"per_device_train_batch_size": 1, "num_train_epochs": 1, "learning_rate": 1e-4, "save_steps": 1000, "bf16": False}
    with tempfile.TemporaryDirectory() as folder:
        lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
        directory = conftest.Directory(Path(folder) / "run", base, rows=rows, held_out=[], method={"type": method}, lora=lora, training=training, probes=())
        theirs = trl(directory, "DPO" if method == "dpo" else "SFT", {}, threads=threads)
        with cpu_seconds_of_training() as cpu:
            lines = run_in_order(directory)
        phases = directory.result["phases"]
        loss, margin = largest(lines, theirs["steps"])
    print(f"{steps} steps of {pairs_a_step} pairs, {sum(len(sequence[0]) for row in rows for sequence in row)} tokens, load {os.getloadavg()[0]:.1f}")
    print(f"largest difference of the loss {loss:.1e}, of the margin {margin:.1e}")
    reference = phases.get("reference", 0.0)
    ours = reference + phases["train"]
    print(f"TRL {theirs['version']}: {theirs['seconds']:.1f} s, {theirs['cpu_seconds']:.1f} CPU seconds")
    print(f"ours: {ours:.1f} s, {sum(cpu):.1f} CPU seconds, the reference included ({reference:.1f} s)")
    print(f"{theirs['seconds'] / ours:.2f} times as fast, {theirs['cpu_seconds'] / sum(cpu):.2f} in CPU seconds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2, help="1: CPU seconds are then the work that is done, whatever else runs")
    parser.add_argument("--method", choices=["supervised", "dpo"], default="dpo")
    given = parser.parse_args()
    if given.base is None:
        every_method(given.write)
    else:
        real_base(given.base.resolve(), given.steps, given.pairs, given.method, given.threads)
