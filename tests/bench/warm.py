"""
Eight short runs one after another, each by a process of its own, and by a warm one that forks (services/train/trainer/warm.py):

    .venv/bin/python tests/bench/warm.py --base DIR [--runs 8] [--steps 10] [--rows-a-step 4]

The rows are those of samples/persona.jsonl. It fails if the adapters are not the same, byte by byte.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "services/train/trainer"
sys.path.insert(0, str(TRAINER / "tests"))
import conftest  # noqa: E402
from persona_rows import persona  # noqa: E402

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_DEACTIVATE_ASYNC_LOAD"):  # the tests' own
    del os.environ[name]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows-a-step", type=int, default=4)
    given = parser.parse_args()
    rows = persona(given.base)
    probes = [{"name": str(n), "input_ids": [token for token, label in zip(*row[0], strict=True) if label == -100]} for n, row in enumerate(rows[:8])]
    training = {"per_device_train_batch_size": given.rows_a_step, "max_steps": given.steps, "learning_rate": 1e-3, "save_steps": 1000}
    print(f"{given.runs} runs of {given.steps} steps of {given.rows_a_step} rows; load before {os.getloadavg()[0]:.1f}", flush=True)

    with tempfile.TemporaryDirectory() as folder:

        def make(name: str) -> conftest.Directory:
            lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
            return conftest.Directory(Path(folder) / name, given.base.resolve(), rows=rows[8:], held_out=rows[:8], lora=lora, training=training, probes=probes)

        def cold() -> list[conftest.Directory]:
            runs = [make(f"cold-{n}") for n in range(given.runs)]
            for run in runs:
                subprocess.run([sys.executable, str(TRAINER / "train.py"), str(run.path)], check=True)
            return runs

        def warm() -> list[conftest.Directory]:
            runs = [make(f"warm-{n}") for n in range(given.runs)]
            path = f"{folder}/socket"
            process = subprocess.Popen([sys.executable, str(TRAINER / "warm.py"), path, str(given.base)])
            while not os.path.exists(path):
                time.sleep(0.01)
            for run in runs:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(path)
                    connection.sendall((json.dumps({"start": {"launch": [], "work": str(run.path), "logFile": f"{run.path}.log"}}) + "\n").encode())
                    assert list(connection.makefile())[-1] == '{"exited": {"code": 0, "signal": null}}\n', Path(f"{run.path}.log").read_text()
            process.kill()
            process.wait()
            return runs

        seconds, digests = {}, set()
        for name, function in (("cold", cold), ("warm", warm)):
            usage, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            runs = function()
            seconds[name] = time.monotonic() - started
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
            digests |= {run.result["adapter"]["files"][1]["sha256"] for run in runs}
            phases = {phase: round(sum(run.result["phases"][phase] for run in runs) / len(runs), 2) for phase in runs[0].result["phases"]}
            print(f"{name}: {seconds[name]:.1f} s, {cpu:.1f} CPU s; of each run {phases}", flush=True)
        print(f"{seconds['cold'] / seconds['warm']:.2f} times as fast; {len(digests)} adapter(s)")
        assert len(digests) == 1


if __name__ == "__main__":
    main()
