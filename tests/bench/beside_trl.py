"""
Training beside TRL, beside the recipe of most tutorials (transformers.Trainer with DataCollatorForSeq2Seq, which pads), and beside LLaMA-Factory, on the same
tokens in the same order, with the same initial A, in float32:

    .venv/bin/python tests/bench/beside_trl.py [--write] [--case NAME…]    every method on a tiny base, 50 steps: the largest differences
    .venv/bin/python tests/bench/beside_trl.py --base DIR [--steps N] [--method supervised|dpo|seq2seq|llama-factory] [--rows mixed|persona] [--turns N]
                                                                                        a real base, and the time of both, in turns

--write puts the others' curves into services/train/trainer/tests/trl_curves.json, by which the trainer's tests check every method without them.
The environments are made by tests/bench/trl-env.sh and llama-factory-env.sh; TRL_PYTHON and LLAMA_FACTORY_PYTHON name others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "services/train/trainer/tests"
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402  sets the threads, before torch is imported
import numpy as np  # noqa: E402
from trl_cases import CASES, directory_of, run_in_order  # noqa: E402

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py has it
LLAMA_FACTORY_PYTHON = os.environ.get("LLAMA_FACTORY_PYTHON", str(ROOT / ".cache/bench-llama-factory/bin/python"))
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
    if kind == "LLaMA-Factory":
        command = [LLAMA_FACTORY_PYTHON, str(ROOT / "tests/bench/llama_factory_curve.py"), str(directory.path), json.dumps(arguments), str(tensors)]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])


def largest(ours: list[dict], theirs: list[dict]) -> tuple[float, float]:
    """The largest difference of the losses, and of the margins where there are some."""
    pairs = list(zip(ours, theirs, strict=True))
    return max(abs(a["loss"] - b["loss"]) for a, b in pairs), max(abs(a["rewards_margin"] - b["margin"]) if "margin" in b else 0 for a, b in pairs)


@contextmanager
def trained_weights():
    """Collects A and B of each module, and its scaling, as they are after the last step: before they are rounded to be published."""
    import canonicalise

    found = {}

    def canonical_tensors(model, *rest):
        for name, layer in canonicalise.lora_layers(model).items():
            a, b = (canonicalise.weight_of(part[canonicalise.ADAPTER]).detach().clone() for part in (layer.lora_A, layer.lora_B))
            found[name] = a, b, layer.scaling[canonicalise.ADAPTER]
        return whole(model, *rest)

    whole = canonicalise.canonical_tensors
    with patch.object(canonicalise, "canonical_tensors", canonical_tensors):
        yield found


def relative_change(ours: dict, path: Path) -> float:
    """|our update - theirs| / |theirs| over all modules together: Frobenius norms of scaling x B x A."""
    from safetensors.torch import load_file

    theirs, difference, norm = load_file(path), 0.0, 0.0
    for name, (a, b, scaling) in ours.items():
        other_a, other_b = (theirs[f"base_model.model.{name}.lora_{part}.default.weight"].double() for part in "AB")
        update = scaling * (other_b @ other_a)
        difference += (scaling * (b.double() @ a.double()) - update).pow(2).sum().item()
        norm += update.pow(2).sum().item()
    return (difference / norm) ** 0.5


def every_method(write: bool, names: list[str]) -> None:
    curves = json.loads((TESTS / "trl_curves.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "base").mkdir()
        base = conftest.make_tiny_base(Path(folder) / "base")
        for name in names or CASES:
            _, kind, arguments = CASES[name]
            directory = directory_of(name, Path(folder) / name, base)
            theirs = trl(directory, kind, arguments, threads=1)
            with trained_weights() as weights:
                loss, margin = largest(run_in_order(directory), theirs["steps"])
            change = relative_change(weights, directory.path / "theirs.safetensors")
            curves[name] = {"by": theirs["version"], **{key: [round(step[key], 6) for step in theirs["steps"]] for key in theirs["steps"][0]}}
            differences = f"largest difference of the loss {loss:.1e}, of the margin {margin:.1e}; of the update {change:.1e} of it"
            print(f"{name}: {len(theirs['steps'])} steps beside {theirs['version']}, {differences}", flush=True)
    if write:
        (TESTS / "trl_curves.json").write_text(
            "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(curve)}" for name, curve in ((name, curves[name]) for name in CASES)) + "\n}\n"
        )


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


def mixed_rows(steps: int, pairs_a_step: int) -> list:
    """Pairs as chats have them, [step][sequence] of (tokens, labels, side): prompts of 20 to 120 tokens, chosen answers of 10 to 60, rejected ones of 20 to 200."""
    random, rows = np.random.default_rng(5), []
    for _ in range(steps):
        sequences = []
        for _ in range(pairs_a_step):
            prompt = random.integers(100, 40_000, size=random.integers(20, 120)).tolist()
            for side, (low, high) in ((1, (10, 60)), (0, (20, 200))):
                answer = random.integers(100, 40_000, size=random.integers(low, high)).tolist()
                sequences.append((prompt + answer, [-100] * len(prompt) + answer, side))
        rows.append(sequences)
    return rows


def persona_rows(base: Path, steps: int, rows_a_step: int) -> list:
    """Those of samples/persona.jsonl, over and over."""
    from persona_rows import persona

    rows = cycle((tokens, labels, 1) for [(tokens, labels)] in persona(base))
    return [[next(rows) for _ in range(rows_a_step)] for _ in range(steps)]


def real_base(given) -> None:
    """All but dpo learn all answers. Both train in turns, because other work on the machine comes and goes."""
    import torch

    torch.set_num_threads(given.threads)
    base = given.base.resolve()
    rows = persona_rows(base, given.steps, given.pairs) if given.rows == "persona" else mixed_rows(given.steps, given.pairs)
    end = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    method = "dpo" if given.method == "dpo" else "supervised"
    kind = {"dpo": "DPO", "seq2seq": "Seq2Seq", "llama-factory": "LLaMA-Factory", "supervised": "SFT"}[given.method]
    rows = [[([*tokens, end], [*labels, end], *([side] if method == "dpo" else [])) for tokens, labels, side in row] for row in rows]
    training = {"per_device_train_batch_size": 1, "num_train_epochs": 1, "learning_rate": 1e-4, "save_steps": 1000, "bf16": False}
    print(f"{given.steps} steps, {sum(len(sequence[0]) for row in rows for sequence in row)} tokens of {given.rows} rows, {given.threads} threads", flush=True)
    for turn in range(given.turns):
        with tempfile.TemporaryDirectory() as folder:
            lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
            directory = conftest.Directory(Path(folder) / "run", base, rows=rows, held_out=[], method={"type": method}, lora=lora, training=training, probes=())
            load = os.getloadavg()[0]
            theirs = trl(directory, kind, {}, threads=given.threads)
            with cpu_seconds_of_training() as cpu, trained_weights() as weights:
                lines = run_in_order(directory)
            phases = directory.result["phases"]
            loss, margin = largest(lines, theirs["steps"])
            change = relative_change(weights, directory.path / "theirs.safetensors")
        reference = phases.get("reference", 0.0)
        ours = reference + phases["train"]
        print(
            f"turn {turn + 1}, load before {load:.1f}: largest difference of the loss {loss:.1e}, of the margin {margin:.1e}; of the update {change:.1e} of it"
        )
        print(f"  {theirs['version']}: {theirs['seconds']:.1f} s, {theirs['cpu_seconds']:.1f} CPU seconds")
        print(f"  ours: {ours:.1f} s, {sum(cpu):.1f} CPU seconds, the reference included ({reference:.1f} s)")
        print(f"  {theirs['seconds'] / ours:.2f} times as fast, {theirs['cpu_seconds'] / sum(cpu):.2f} in CPU seconds", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--case", nargs="*", default=[], help="of trl_cases.py; default: all")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=4, help="of a step; of persona rows: rows")
    parser.add_argument("--threads", type=int, default=2, help="1: CPU seconds are then the work that is done, whatever else runs")
    parser.add_argument("--method", choices=["supervised", "dpo", "seq2seq", "llama-factory"], default="dpo")
    parser.add_argument("--rows", choices=["mixed", "persona"], default="mixed")
    parser.add_argument("--turns", type=int, default=1)
    given = parser.parse_args()
    if given.base is None:
        every_method(given.write, given.case)
    else:
        real_base(given)
