"""Several processes, as torchrun starts them, on a CPU: the same adapter as one process makes of the same batches."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ENVIRONMENT, TRAINER, make_rows

ONE = {
    "lora": {"lora_dropout": 0.0},
    "training": {"per_device_train_batch_size": 4, "num_train_epochs": 3, "learning_rate": 0.01, "save_steps": 4, "bf16": False},
}
TWO = {"lora": ONE["lora"], "training": ONE["training"] | {"per_device_train_batch_size": 2}}
ROWS = make_rows(16, seed=1)


def torchrun(run, **environment) -> subprocess.Popen:
    """Starts the trainer as the courier does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]
    return subprocess.Popen([*command, str(TRAINER / "train.py"), str(run.path)], env=ENVIRONMENT | environment)


def tensors(run) -> dict:
    from safetensors.torch import load_file

    return load_file(run.path / "adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_base):
    from conftest import Directory

    run = Directory(tmp_path_factory.mktemp("one") / "run", tiny_base, rows=ROWS, **ONE)
    assert run.run() == 0
    return run


def same(two, one) -> None:
    """Two ranks sum in another order than one process, so results differ by rounding only."""
    assert [step for step, _ in two.result["loss_history"]] == [step for step, _ in one.result["loss_history"]]
    assert [loss for _, loss in two.result["loss_history"]] == pytest.approx([loss for _, loss in one.result["loss_history"]], rel=1e-4)
    for name in ("steps", "total_steps", "tokens_seen"):
        assert two.result[name] == one.result[name]
    assert two.result["evaluation"]["adapter_loss"] == pytest.approx(one.result["evaluation"]["adapter_loss"], rel=0.01)
    ours, theirs = tensors(two), tensors(one)
    assert ours.keys() == theirs.keys()
    apart = sum((ours[name].float() - theirs[name].float()).norm() ** 2 for name in ours) ** 0.5
    size = sum(each.float().norm() ** 2 for each in theirs.values()) ** 0.5
    assert apart < 1e-3 * size


def test_two_ranks_train_what_one_process_trains_and_go_on_after_sigterm(directory, one):
    two = directory("two", rows=ROWS, **TWO)
    process = torchrun(two)
    deadline = time.monotonic() + 120
    while not ((two.path / "progress.jsonl").exists() and two.lines("step")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.terminate()  # the signal goes to torchrun only, which passes it to all ranks
    process.wait(60)
    stopped = two.result
    assert stopped["status"] == "preempted" and 1 <= stopped["steps"] < 12
    assert [path.name for path in (two.path / "checkpoints").glob("step-*")] == [f"step-{stopped['steps']:08d}"]
    meter = json.loads((two.path / f"checkpoints/step-{stopped['steps']:08d}/meter.json").read_text())
    assert meter["tokens_seen"] == stopped["tokens_seen"] == two.lines("step")[-1]["tokens_seen"]

    assert torchrun(two).wait(120) == 0
    assert [line["step"] for line in two.lines("step")] == list(range(1, 13))  # one writer, nothing twice
    assert two.lines("step")[-1]["examples_seen"] == one.lines("step")[-1]["examples_seen"]
    same(two, one)


def test_the_rank_that_fails_says_why(directory):
    """Only the second rank meets the error; the first one sees a broken connection. The result must have the second's code."""
    run = directory(rows=ROWS, **TWO)
    broken = run.path / "broken"
    broken.mkdir()
    for path in [*TRAINER.glob("*.py"), TRAINER / "spec_fields.json"]:
        shutil.copy(path, broken)
    with open(broken / "loop.py", "a") as file:
        file.write(
            "\n_step = LoraTrainer.training_step\n"
            "def training_step(self, *args):\n"
            "    if RANK == 1 and self.state.global_step == 2:\n"
            "        raise torch.OutOfMemoryError('CUDA out of memory')\n"
            "    return _step(self, *args)\n"
            "LoraTrainer.training_step = training_step\n"
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]
    assert subprocess.run([*command, str(broken / "train.py"), str(run.path)], env=ENVIRONMENT, timeout=120).returncode != 0
    assert run.result["status"] == "failed" and run.result["error"]["code"] == "OUT_OF_MEMORY"
    assert not (run.path / "adapter").exists()


def test_a_checkpoint_of_one_process_is_not_continued_by_two(directory, monkeypatch):
    import train

    run = directory(**TWO)
    spec, shards = train.read_spec(run.path / "spec.json"), run.path / "shards"
    alone = train.fingerprint_of(spec, shards)
    monkeypatch.setattr(train, "WORLD_SIZE", 2)
    assert train.fingerprint_of(spec, shards) != alone


def test_a_gpu_that_was_asked_for_and_is_not_there_is_no_cpu(directory):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    run = directory()
    (run.path / "spec.json").write_text(json.dumps(run.spec | {"device": "cuda"}))
    assert run.run() == 1
    assert run.result["error"]["code"] == "DEVICE_MISSING"
