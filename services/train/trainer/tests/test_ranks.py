"""Several processes, as torchrun starts them, on a CPU: the same adapter as one process makes of the same batches."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from unittest.mock import patch

import pytest
from conftest import ENVIRONMENT, TRAINER, VOCABULARY, make_pairs, make_rows

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


def test_a_checkpoint_whose_steps_cannot_be_shared_evenly_is_refused(directory, monkeypatch):
    import loop
    import train

    run = directory(**TWO)
    spec, shards = train.read_spec(run.path / "spec.json"), run.path / "shards"
    about = {"step": 4, "fingerprint": train.fingerprint_of(spec, shards, 2), "compute_type": "float32", "ranks": 2}
    (run.path / "checkpoints/.partial/checkpoint-4").mkdir(parents=True)
    loop.commit_checkpoint(run.path / "checkpoints/.partial/checkpoint-4", run.path / "checkpoints", about, {})
    (run.path / "checkpoints/step-00000004").rename(run.path / "resume")
    monkeypatch.setattr(train, "WORLD_SIZE", 3)
    with pytest.raises(train.TrainerError, match="4 rows, which 3 processes cannot share evenly") as error:
        train.newest_checkpoint(train.Attempt(run.path), spec)
    assert error.value.code == "RESUME_INVALID"


def forked(run, count: int, at=lambda: None) -> list[int]:
    """Several processes on one run, forked from this one, which has imported everything. `at` is called in each first. Returns how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            code = 3
            try:
                become_rank(rank, count, port)
                at()
                code = run.run()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def become_rank(rank: int, count: int, port: int) -> None:
    import loop
    import preferences
    import train

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train.IS_WRITER, train.WORLD_SIZE = rank == 0, count
    loop.RANK = preferences.RANK = rank


def die_in_step(step: int):
    """For `forked`: SIGKILL in the middle of this step."""

    def at() -> None:
        import loop

        original = loop.LoraTrainer.training_step

        def training_step(self, *arguments):
            if self.state.global_step + 1 == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *arguments)

        patch.object(loop.LoraTrainer, "training_step", training_step).start()

    return at


SHARED_OUT = {"lora": {"lora_dropout": 0.0}, "training": {"learning_rate": 0.01, "num_train_epochs": 2, "save_steps": 3, "bf16": False}}


def shared_out(directory, name: str, **training):
    return directory(name, rows=ROWS, lora=SHARED_OUT["lora"], training=SHARED_OUT["training"] | training)


def weights_of_checkpoint(run, step: int):
    """The adapter in float32, as one vector."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(run.path / f"checkpoints/step-{step:08d}/adapter_model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_base):
    """Two processes that each hold the whole base."""
    from conftest import Directory

    run = shared_out(lambda name, **options: Directory(tmp_path_factory.mktemp(name) / "run", tiny_base, **options), "whole", per_device_train_batch_size=2)
    assert forked(run, 2) == [0, 0]
    return run


def test_a_base_that_is_shared_out_trains_the_very_same_adapter(directory, whole):
    """FSDP2: the same bytes, in the layout that PEFT reads, although each process holds and reads its part of the base only."""

    def note_parts() -> None:
        import sharding
        from loop import RANK

        load = sharding.load

        def load_and_note(*arguments, **options):
            model = load(*arguments, **options)
            held = {id(parameter): parameter.to_local() for parameter in model.parameters()}
            (parts.path / f"held-{RANK}").write_text(str(sum(part.numel() for part in held.values())))
            return model

        patch.object(sharding, "load", load_and_note).start()

    parts = shared_out(directory, "parts", per_device_train_batch_size=2, fsdp=True)
    assert forked(parts, 2, note_parts) == [0, 0]
    assert parts.result["loss_history"] == whole.result["loss_history"]
    assert parts.result["adapter"]["files"] == whole.result["adapter"]["files"]
    assert parts.result["evaluation"]["adapter_loss"] == pytest.approx(whole.result["evaluation"]["adapter_loss"], rel=1e-2)  # in float32, and in bf16
    assert parts.result["probes"] and len(list((parts.path / "published").glob("*.json"))) == 2
    held = [int((parts.path / f"held-{rank}").read_text()) for rank in (0, 1)]
    import safetensors

    with safetensors.safe_open(next((parts.path / "base").glob("*.safetensors")), "pt") as file:
        assert sum(held) == sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  no dict
    assert max(held) < 0.51 * sum(held)


def test_four_processes_begin_two_go_on_and_one_ends(directory, whole):
    """Each is killed between two checkpoints; the next has another number of processes, with and without FSDP. The steps keep their rows."""

    def with_head_in_chunks() -> None:
        import head

        patch.object(head, "LOGITS_AT_ONCE", 5 * VOCABULARY).start()  # of other numbers in each process
        die_in_step(5)()

    run = shared_out(directory, "run", per_device_train_batch_size=1, fsdp=True, gradient_checkpointing=True)
    assert forked(run, 4, with_head_in_chunks) == [-signal.SIGKILL] * 4
    assert forked(run, 2, die_in_step(8)) == [-signal.SIGKILL] * 2
    assert run.run() == 0
    assert [step for step, _ in run.result["loss_history"]] == list(range(1, 9))
    assert [loss for _, loss in run.result["loss_history"]] == pytest.approx([loss for _, loss in whole.result["loss_history"]], abs=1e-5)
    assert run.result["tokens_seen"] == whole.result["tokens_seen"]
    # Other numbers of rows in each product are rounded otherwise: 1e-6 to 5e-6 on a processor with AVX2, less than 1e-6 on one with AVX-512.
    ours, theirs = weights_of_checkpoint(run, 6), weights_of_checkpoint(whole, 6)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("method", [None, "kto"])
def test_rows_that_the_processes_cannot_share_evenly_are_learned_once_each(directory, method):
    """As one process learns them, also where a process has none in the last step of an epoch, or the number of processes changes within one."""
    rows = make_rows(13, seed=1) if method is None else make_pairs(13, seed=1, unpaired=True)

    def of(name: str, size: int):
        training = {"learning_rate": 0.01, "num_train_epochs": 2, "save_steps": 1, "bf16": False, "per_device_train_batch_size": size}
        chosen = {} if method is None else {"method": {"type": method}}
        held_out = None if method is None else make_pairs(4, seed=2, packed=1, unpaired=True)
        return directory(name, rows=rows, held_out=held_out, lora={"lora_dropout": 0.0}, training=training, **chosen)

    alone, four, changing = of("alone", 4), of("four", 1), of("changing", 4)
    assert alone.run() == 0
    assert forked(four, 4) == [0] * 4
    assert forked(changing, 1, die_in_step(3)) == [-signal.SIGKILL]
    assert forked(changing, 2, die_in_step(6)) == [-signal.SIGKILL] * 2
    assert forked(changing, 4) == [0] * 4
    for run in (four, changing):
        assert [loss for _, loss in run.result["loss_history"]] == pytest.approx([loss for _, loss in alone.result["loss_history"]], rel=1e-4)
        assert run.result["tokens_seen"] == alone.result["tokens_seen"]
        rewards = [[line.get("rewards_margin") for line in each.lines("step")][-1] for each in (run, alone)]
        assert rewards == [None, None] if method is None else rewards[0] == pytest.approx(rewards[1], rel=1e-3)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "pictures"),
    ],
)
def test_a_base_that_cannot_be_shared_out_is_refused(tmp_path, config, why):
    import sharding
    import torch

    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(sharding.TrainerError, match=why) as error:
        sharding.load(tmp_path, torch.float32, 2)
    assert error.value.param == "training.fsdp"


@pytest.mark.parametrize("options", [{"method": {"type": "dpo"}}, {"lora": {"init_lora_weights": "olora"}}])
def test_what_needs_the_whole_base_in_each_process_does_not_go_with_fsdp(directory, options):
    import spec

    run = directory(training={"fsdp": "full_shard"}, **options)
    with pytest.raises(spec.TrainerError, match="fsdp does not go with"):
        spec.read_spec(run.path / "spec.json")


def test_a_gpu_that_was_asked_for_and_is_not_there_is_no_cpu(directory):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    run = directory()
    (run.path / "spec.json").write_text(json.dumps(run.spec | {"device": "cuda"}))
    assert run.run() == 1
    assert run.result["error"]["code"] == "DEVICE_MISSING"
