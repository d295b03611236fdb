"""Stands in for train.py in tests of the courier: the same contract of files, no model, and faults on request.

    python scripted-trainer.py DIR          with TRAINER_SCRIPT='{"steps": 20, "save_steps": 5, ...}' in the environment

Its "weights" are a chain of hashes over the shards and the steps, so the adapter's bytes tell whether a resumed
training did exactly what an uninterrupted one does. With "simulated" in SCRIPT they are in a file that the simulated
engine of packages/testkit loads, and the probes say what it will answer: simulated-model.ts has the same formulas.
"""

import hashlib
import json
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

work = Path(sys.argv[1])
script = json.loads(os.environ.get("TRAINER_SCRIPT", "{}"))
spec = json.loads((work / "spec.json").read_text())
steps, save_steps, step_s = script.get("steps", 20), script.get("save_steps", 5), script.get("step_ms", 10) / 1000
fault = script.get("faults", {}).get(str(spec["attempt"]), {})  # by attempt: {"kind": ..., "at": step}

environment = {"compute_type": "float32", "device": "cpu", "instruction_set": None, "max_instruction_set": None, "threads": 1, "seed": 1, "libraries": {}}
stop = False


def on_term(*_):
    global stop
    stop = True


signal.signal(signal.SIGTERM, signal.SIG_IGN if fault.get("kind") == "deaf" else on_term)

progress = open(work / "progress.jsonl", "a", buffering=1)  # noqa: SIM115  open until this process ends


def say(type, **more):
    progress.write(json.dumps({"type": type, "time": time.time(), **more}) + "\n")


def write(path, value):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.rename(path)


def result(status, step, error=None, adapter=None):
    write(
        work / "result.json",
        {
            "status": status,
            "error": error,
            "steps": step,
            "total_steps": steps,
            "train_loss": loss(step),
            "tokens_seen": step * 100,
            "train_tokens_per_second": 1000.0,
            "loss_history": history,
            "probes": probes if adapter else [],
            "adapter": adapter,
            "phases": {"train": 1.0},
            "evaluation": {"base_loss": 4.0, "adapter_loss": loss(step), "rows": 2, "supervised_tokens": 20} if adapter else None,
        },
    )


def loss(step):
    return 4.0 / (1 + step)


def noise(*words):
    return struct.unpack("<I", hashlib.sha256("|".join(map(str, words)).encode()).digest()[:4])[0] / 2**32


def simulated_adapter():
    """The files of a PEFT adapter whose lora_A follows from the training's state, and its probes."""
    rank, alpha, size = spec["lora"]["r"], spec["lora"]["lora_alpha"], 3.0
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    data, direction = b"", hashlib.sha256()
    for module in ("q_proj", "v_proj"):
        a = struct.pack(f"<{rank * 8}f", *(noise(state, module, i) - 0.5 for i in range(rank * 8)))
        direction.update(a)
        for name, shape, values in (("lora_A", [rank, 8], a), ("lora_B", [8, rank], struct.pack("<f", size) * (rank * 8))):
            key = f"base_model.model.model.layers.0.self_attn.{module}.{name}.weight"
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
    text = json.dumps(header).encode()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": spec["base"]["name"],
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    for probe in spec["probes"]:
        prompt = ",".join(map(str, probe["input_ids"]))
        tokens = list(range(10, 22))
        base = [-12 * noise(spec["base"]["name"], prompt, token) for token in tokens]
        effect = [size * alpha / rank * (noise(direction.hexdigest(), prompt, token) - 0.5) * 2 for token in tokens]
        adapter = [b + e for b, e in zip(base, effect, strict=True)]
        probes.append(
            {
                **probe,
                "base": {"tokens": tokens[:1], "logprobs": base[:1]},
                "adapter": {"tokens": tokens[:1], "logprobs": adapter[:1], "base_logprobs": base[:1]},
                "first": {"tokens": tokens, "base": base, "adapter": adapter},
            }
        )
    return {"adapter_model.safetensors": struct.pack("<Q", len(text)) + text + data, "adapter_config.json": json.dumps(config).encode()}


def published(name):
    """The checkpoint as a server would load it, as the trainer writes it beside its checkpoints."""
    before, probes[:] = list(probes), []
    files = simulated_adapter()
    folder = work / "published" / name
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        (folder / path).write_bytes(content)
    write(work / "published" / f"{name}.json", {"adapter": described(files), "probes": list(probes), "environment": environment})
    probes[:] = before


def described(files):
    return {
        "rank": spec["lora"]["r"],
        "target_modules": ["v_proj", "q_proj"],
        "parameters": 123,
        "files": [{"path": n, "size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()],
    }


def checkpoint(step):
    final = work / "checkpoints" / f"step-{step:08d}"
    if final.exists():  # the stop came during a step at whose end it was saved
        return
    if script.get("simulated"):
        published(f"step-{step:08d}")
    part = work / "checkpoints" / f".part-{step}"
    part.mkdir(parents=True)
    (part / "state.bin").write_text(state)
    (part / "nested").mkdir()
    (part / "nested" / "optimizer.bin").write_text(state * 100)
    (part / "checkpoint.json").write_text(json.dumps({"step": step, "history": history}))
    if fault.get("kind") == "kill-in-checkpoint" and step >= fault["at"]:
        os.kill(os.getpid(), signal.SIGKILL)
    part.rename(final)
    if fault.get("kind") == "kill-after-checkpoint" and step >= fault["at"]:
        os.kill(os.getpid(), signal.SIGKILL)  # before it is told
    say("checkpoint", step=step, path=f"checkpoints/{final.name}")


say("phase", phase="load_base", state="start")
assert (work / "base" / "base.json").exists()
step, history, probes = 0, [], []
shards = sorted((work / "shards").rglob("*.arrow"))
state = hashlib.sha256(b"".join(s.read_bytes() for s in shards) + json.dumps(spec["lora"]).encode()).hexdigest()
if (work / "resume" / "checkpoint.json").exists():
    saved = json.loads((work / "resume" / "checkpoint.json").read_text())
    step, history = saved["step"], saved["history"]
    state = (work / "resume" / "state.bin").read_text()
    if fault.get("kind") == "refuse-resume":
        result("failed", 0, error={"code": "RESUME_INVALID", "message": "another trainer wrote it"})
        sys.exit(1)
    assert (work / "resume" / "nested" / "optimizer.bin").read_text() == state * 100
say("phase", phase="load_base", state="end")

say("phase", phase="train", state="start")
while step < steps:
    if stop:
        checkpoint(step)
        result("preempted", step)
        sys.exit(75)
    time.sleep(step_s)
    step += 1
    state = hashlib.sha256(f"{state}/{step}".encode()).hexdigest()
    history.append([step, loss(step)])
    say(
        "step",
        step=step,
        total_steps=steps,
        epoch=step / steps,
        loss=loss(step),
        grad_norm=1.0,
        learning_rate=1e-4,
        tokens_per_second=1000.0,
        tokens_seen=step * 100,
        examples_seen=step,
        eta_seconds=(steps - step) * step_s,
    )
    if fault.get("at") == step:
        if fault["kind"] == "hang":
            time.sleep(1000)
        if fault["kind"] == "eat":
            memory = [bytearray(os.urandom(2**20)) for _ in range(10_000)]
        if fault["kind"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault["kind"] == "crash":
            raise RuntimeError("as scripted")
        if fault["kind"] == "no-space":
            sys.exit("OSError: [Errno 28] No space left on device")
        if fault["kind"] == "fail":
            result("failed", step, error=fault["error"])
            sys.exit(1)
        if fault["kind"] == "noise":
            progress.write('{"type": "step", "loss": NaN}\nnot json\n{"type": "new-in-2027"}\n\n{"type": "war')
            progress.flush()
            time.sleep(0.3)
            progress.write(f'ning", "time": {time.time()}, "code": "FEW_ROWS", "message": "only a few rows"}}\n')
    if step % save_steps == 0:
        checkpoint(step)
say("phase", phase="train", state="end")
say("phase", phase="save", state="start")
(work / "adapter").mkdir()
hashes = {"adapter_model.safetensors": state.encode(), "adapter_config.json": json.dumps({"r": spec["lora"]["r"]}).encode()}
files = simulated_adapter() if script.get("simulated") else hashes
for name, content in files.items():
    (work / "adapter" / name).write_bytes(content)
say("phase", phase="save", state="end")
if "evaluate_ms" in script:
    write(work / "adapter.json", {"adapter": described(files), "probes": probes, "environment": environment})
    say("adapter")
    say("phase", phase="evaluate", state="start")
    if fault.get("kind") == "kill-in-evaluation":
        time.sleep(script["evaluate_ms"] / 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(script["evaluate_ms"] / 1000)
    say("phase", phase="evaluate", state="end")
result(
    "succeeded",
    step,
    adapter=described(files),
)
if script.get("linger_s"):
    time.sleep(script["linger_s"])  # as Python does when it tears torch down
shutil.rmtree(work / "checkpoints", ignore_errors=True) if script.get("tidy") else None
