"""What a user of the directory sees: results, errors, kills and resumes."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from unittest.mock import patch

import compute
import pytest
from conftest import TRAINER, make_rows, make_tiny_base


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def failure(run) -> dict:
    assert run.run() == 1
    assert run.result["status"] == "failed"
    assert not (run.path / "adapter").exists()
    return run.result["error"]


# ---------------------------------------------------------------------------------------------------------------------
# A run that succeeds


def test_a_run_leaves_progress_adapter_and_result(directory):
    run = directory(training={"eval_steps": 5})
    assert run.run() == 0
    result = run.result

    assert result["status"] == "succeeded" and result["error"] is None
    assert result["steps"] == result["total_steps"] == 12  # 12 rows, 2 at a time, 2 epochs
    steps = run.lines("step")
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert result["loss_history"] == [[step["step"], step["loss"]] for step in steps]
    assert steps[-1]["loss"] < steps[0]["loss"] and result["train_loss"] == steps[-1]["loss"]
    assert steps[-1]["epoch"] == 2 and steps[-1]["eta_seconds"] == 0
    tokens = sum(len(tokens) for row in make_rows(12, seed=1) for tokens, _ in row)
    assert steps[-1]["tokens_seen"] == result["tokens_seen"] == 2 * tokens
    assert steps[-1]["examples_seen"] == 2 * 12 * 3
    assert [line["step"] for line in run.lines("eval")] == [5, 10, 12]
    assert result["eval_history"] == [[line["step"], line["eval_loss"]] for line in run.lines("eval")]

    assert result["evaluation"]["adapter_loss"] < result["evaluation"]["base_loss"]
    assert 0 <= result["evaluation"]["base_accuracy"] <= result["evaluation"]["adapter_accuracy"] <= 1
    assert result["evaluation"]["rows"] == 4
    assert result["evaluation"]["supervised_tokens"] == sum(len(labels) - 4 for row in make_rows(4, seed=2, packed=1) for _, labels in row)

    phases = [(line["phase"], line["state"]) for line in run.lines("phase")]
    assert {name for name, _ in phases} == {"load_base", "self_test", "train", "evaluate", "probe", "save"} == set(result["phases"])
    assert all(phases[i][0] == phases[i + 1][0] for i in range(0, len(phases), 2))  # start, end, start, end, …

    assert sorted(os.listdir(run.path / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]
    for file in result["adapter"]["files"]:
        path = run.path / "adapter" / file["path"]
        assert (sha256(path), path.stat().st_size, path.stat().st_mode & 0o777) == (file["sha256"], file["size"], 0o644)
    assert os.listdir(run.path / "checkpoints/.partial") == []


def test_the_same_run_gives_the_same_bytes(directory):
    first, second = directory("first"), directory("second")
    assert first.run() == second.run() == 0
    assert first.result["adapter"] == second.result["adapter"]
    assert first.result["loss_history"] == second.result["loss_history"]


# Rows that contradict the held-out ones: the longer it trains, the worse it does there.
MISLED = {"training": {"num_train_epochs": 6, "learning_rate": 0.05, "eval_steps": 3, "load_best_model_at_end": True}}


def misleading_rows():
    return make_rows(4, seed=1) + [
        [(tokens, [-100 if label == -100 else (label * 7) % 61 + 3 for label in labels]) for tokens, labels in row] for row in make_rows(8, seed=2)
    ]


def test_the_best_step_is_published(directory):
    constant = MISLED["training"] | {"lr_scheduler_type": "constant"}
    best, last = (
        directory("best", rows=misleading_rows(), training=constant),
        directory("last", rows=misleading_rows(), training=constant | {"load_best_model_at_end": False}),
    )
    assert best.run() == last.run() == 0
    curve = best.result["eval_history"]
    assert [step for step, _ in curve] == [*range(3, 36, 3), 36]
    step, loss = min(curve, key=lambda point: point[1])
    assert step < 36, "the rows must mislead it, or the test shows nothing"
    evaluation = best.result["evaluation"]
    assert evaluation["published_step"] == step and evaluation["adapter_loss"] == pytest.approx(loss, abs=0.02)
    assert last.result["evaluation"]["published_step"] == 36 and last.result["evaluation"]["adapter_loss"] > evaluation["adapter_loss"]
    assert not evaluation["stopped_early"] and best.result["steps"] == 36


def test_the_best_step_has_the_very_weights_of_that_step(directory):
    constant = MISLED["training"] | {"lr_scheduler_type": "constant"}
    best = directory("best", rows=misleading_rows(), training=constant)
    assert best.run() == 0
    step = best.result["evaluation"]["published_step"]
    assert step < best.result["steps"]
    ended = directory("ended", rows=misleading_rows(), training=constant | {"load_best_model_at_end": False, "eval_steps": None, "max_steps": step})
    assert ended.run() == 0
    assert best.result["adapter"] == ended.result["adapter"]


def test_the_best_step_cannot_be_found_without_held_out_rows(directory):
    error = failure(directory(held_out=[], training={"load_best_model_at_end": True}))
    assert (error["code"], error["param"]) == ("SPEC_INVALID", "training.load_best_model_at_end")


def test_it_stops_when_nothing_gets_better_and_goes_on_so_after_a_kill(directory, monkeypatch):
    import loop

    patient = MISLED["training"] | {"early_stopping_patience": 2, "save_steps": 5}
    whole, killed = directory("whole", rows=misleading_rows(), training=patient), directory("killed", rows=misleading_rows(), training=patient)
    assert whole.run() == 0
    steps = [step for step, _ in whole.result["eval_history"]]
    losses = [loss for _, loss in whole.result["eval_history"]]
    best = losses.index(min(losses))
    assert whole.result["steps"] == steps[-1] == steps[best] + 6 < whole.result["total_steps"] == 36
    assert whole.result["evaluation"]["stopped_early"] and whole.result["evaluation"]["published_step"] == steps[best]

    def die_before_the_end():
        note = loop.Best.note

        def noting(self, meter, step, loss):
            note(self, meter, step, loss)
            if step == steps[-1]:
                os.kill(os.getpid(), signal.SIGKILL)

        loop.Best.note = noting

    killed.run_and_die(die_before_the_end)
    assert killed.run() == 0
    assert killed.result["adapter"] == whole.result["adapter"]
    assert killed.result["eval_history"] == whole.result["eval_history"]


def test_of_many_held_out_rows_as_many_are_evaluated_as_the_budget_allows(directory):
    held_out = make_rows(400, seed=2, packed=1)
    cheap = directory("cheap", held_out=held_out)
    more = directory("more", held_out=held_out, training={"eval_budget": 1})
    every = directory("every", held_out=held_out, training={"eval_budget": "all"})
    assert cheap.run() == more.run() == every.run() == 0
    assert [run.result["evaluation"]["rows"] for run in (cheap, more, every)] == [32, 64, 400]
    assert {run.result["evaluation"]["held_out_rows"] for run in (cheap, more, every)} == {400}
    assert cheap.result["adapter"] == every.result["adapter"]
    first = directory("first", held_out=held_out[:64])
    assert first.run() == 0
    assert first.result["evaluation"]["rows_digest"] != more.result["evaluation"]["rows_digest"]  # 32 of 64
    tokens = sum(len(labels) - 4 for row in held_out[:64] for _, labels in row)
    assert more.result["evaluation"]["supervised_tokens"] == tokens


def test_it_says_how_far_an_evaluation_is(directory, monkeypatch):
    import train

    monkeypatch.setattr(train, "COUNT_EVERY_S", 0.0)
    run = directory(held_out=make_rows(6, seed=2, packed=1), training={"eval_steps": 6})
    assert run.run() == 0
    counts = run.lines("count")
    assert [(line["phase"], line["done"], line["total"]) for line in counts] == [("evaluate", done, 6) for done in range(1, 6)] * 3
    assert all(line["eta_seconds"] >= 0 for line in counts)


def test_probes_record_what_the_published_adapter_says(directory, monkeypatch):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(compute, "native_type", lambda: compute.BF16)
    prompts = [{"name": "a", "input_ids": [1, 5, 9, 12]}, {"name": "b", "input_ids": [7, 40, 11, 3, 20, 33]}]
    run = directory(probes=prompts)
    assert run.run() == 0

    base = AutoModelForCausalLM.from_pretrained(run.path / "base", dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(base, run.path / "adapter", autocast_adapter_dtype=False).eval()

    def logprobs(prompt, tokens):
        with torch.no_grad():
            logits = adapted(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        return logits.argmax(-1).tolist(), logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()

    for probe in run.result["probes"]:
        prompt, said = probe["input_ids"], probe["adapter"]
        assert len(said["tokens"]) == len(probe["base"]["tokens"]) == 1
        greedy, expected = logprobs(prompt, said["tokens"])
        assert greedy == said["tokens"]
        assert said["logprobs"] == pytest.approx(expected, abs=0.03)
        with adapted.disable_adapter():
            assert said["base_logprobs"] == pytest.approx(logprobs(prompt, said["tokens"])[1], abs=0.03)
            greedy, expected = logprobs(prompt, probe["base"]["tokens"])
        assert greedy == probe["base"]["tokens"] and probe["base"]["logprobs"] == pytest.approx(expected, abs=0.03)

        first = probe["first"]
        assert len(first["tokens"]) == len(set(first["tokens"])) >= 8 and said["tokens"][0] in first["tokens"]
        assert first["adapter"] != pytest.approx(first["base"], abs=0.1)
        every = [logprobs(prompt, [token])[1][0] for token in first["tokens"]]
        assert first["adapter"] == pytest.approx(every, abs=0.03)
        with adapted.disable_adapter():
            assert first["base"] == pytest.approx([logprobs(prompt, [token])[1][0] for token in first["tokens"]], abs=0.03)
        first = probe["first"]
        with torch.no_grad():
            now = adapted(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
            with adapted.disable_adapter():
                before = adapted(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
        assert {now.argmax().item(), before.argmax().item()} <= set(first["tokens"]) and len(first["tokens"]) >= 8
        assert first["adapter"] == pytest.approx(now[first["tokens"]].tolist(), abs=0.03)
        assert first["base"] == pytest.approx(before[first["tokens"]].tolist(), abs=0.03)


def test_the_adapter_is_complete_before_it_is_evaluated(directory, monkeypatch):
    import packing

    run = directory("run", training={"load_best_model_at_end": True, "eval_steps": 3})
    evaluate, seen = packing.evaluate, []

    def watching(model, sequences):
        seen.append([line["type"] for line in run.lines("adapter")])
        return evaluate(model, sequences)

    monkeypatch.setattr(packing, "evaluate", watching)
    assert run.run() == 0
    assert seen[-1] == ["adapter"] and not any(seen[:-1])
    written, result = json.loads((run.path / "adapter.json").read_text()), run.result
    assert written == {name: result[name] for name in ("adapter", "probes", "environment")}
    for file in written["adapter"]["files"]:  # of the best step
        assert sha256(run.path / "adapter" / file["path"]) == file["sha256"]


def test_accumulation_counts_tokens_not_batches(directory):
    """One batch of 4 rows, or 4 of 1: the same steps, as the loss is normalised by the supervised tokens of a step."""
    rows = make_rows(8, seed=3, packed=1) + make_rows(8, seed=4, packed=4)
    common = {"num_train_epochs": 1, "bf16": False}
    whole = directory("whole", rows=rows, lora={"lora_dropout": 0}, training={**common, "per_device_train_batch_size": 4})
    parts = directory("parts", rows=rows, lora={"lora_dropout": 0}, training={**common, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4})
    assert whole.run() == parts.run() == 0
    for (_, a), (_, b) in zip(whole.result["loss_history"], parts.result["loss_history"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(
    "training",
    [
        {"gradient_checkpointing": True},
        {"bf16": False, "lr_scheduler_type": "cosine", "warmup_steps": 0.25, "weight_decay": 0.1, "max_grad_norm": 0.3},
        {"max_steps": 3, "logging_steps": 2, "warmup_steps": 2},
    ],
    ids=["gradient_checkpointing", "fp32-cosine", "max_steps"],
)
def test_training_settings_are_honoured(directory, training):
    run = directory(training=training)
    assert run.run() == 0
    if "max_steps" in training:
        assert [step for step, _ in run.result["loss_history"]] == [2, 3]
    if "warmup_steps" in training:
        rates = [line["learning_rate"] for line in run.lines("step")]
        assert rates[0] < 0.02


def test_rows_without_supervised_tokens_are_left_out_and_told(directory):
    silent = [[([1, 2, 3], [-100, -100, -100])]]
    run = directory(rows=make_rows(6, seed=1) + silent * 2, training={"num_train_epochs": 1})
    assert run.run() == 0
    assert run.result["steps"] == 3
    assert [line["code"] for line in run.lines("warning")] == ["ROWS_WITHOUT_LABELS"]


# ---------------------------------------------------------------------------------------------------------------------
# Kills and resumes

LONG = {"training": {"num_train_epochs": 3, "save_steps": 4, "logging_steps": 1}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_base):
    from conftest import Directory

    run = Directory(tmp_path_factory.mktemp("undisturbed") / "run", tiny_base, **LONG)
    assert run.run() == 0
    return run.result


def die_after_step(step):
    def wire():
        import train

        emit = train.Attempt.emit

        def emit_and_die(attempt, line):
            emit(attempt, line)
            if line["type"] == "step" and line["step"] == step:
                os.kill(os.getpid(), signal.SIGKILL)

        patch.object(train.Attempt, "emit", emit_and_die).start()

    return wire


@pytest.mark.parametrize("step", [2, 4, 7, 13, 18])
def test_killed_at_any_step_it_ends_with_the_same_curve_and_bytes(directory, undisturbed, step):
    run = directory(**LONG)
    run.run_and_die(die_after_step(step))
    assert not (run.path / "result.json").exists()
    assert run.run() == 0
    assert run.result["loss_history"] == undisturbed["loss_history"]  # bit for bit, dropout included
    assert run.result["adapter"] == undisturbed["adapter"]
    assert run.result["tokens_seen"] == undisturbed["tokens_seen"]
    again = [line["step"] for line in run.lines("step")]
    assert again == list(range(1, step + 1)) + list(range((step - 1) // 4 * 4 + 1, 19))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("base", ["wide", "smollm2-135m-instruct"])
def test_twice_and_resumed_it_gives_the_same_bytes_on_a_busy_machine(directory, tmp_path, base, threads):
    """The tiny base is so wide that its products are shared by two threads. The real one takes seconds: what is resumed is its second time."""
    is_wide = base == "wide"
    base = make_tiny_base(tmp_path / "wide", width=256) if is_wide else TRAINER.parents[2] / ".loraline/bases" / base
    held_out = None if is_wide else []
    settings = {"per_device_train_batch_size": 4 if is_wide else 2, "max_steps": 4, "learning_rate": 0.002, "save_steps": 2}

    def wire(at):
        import torch

        torch.set_num_threads(threads)
        at()

    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        runs = []
        for name, deaths in (("once", []), *([("twice", [])] if is_wide else []), ("resumed", [die_after_step(3)])):
            run = directory(f"{name}-{threads}", base, rows=make_rows(16, seed=1), held_out=held_out, training=settings)
            for at in deaths:
                run.run_and_die(lambda at=at: wire(at))
            child = os.fork()
            if child == 0:
                try:
                    wire(lambda: None)
                    os._exit(run.run())
                finally:
                    os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            runs.append(run.result)
    finally:
        busy.kill()
        busy.wait()
    assert {run["environment"]["threads"] for run in runs} == {threads}
    for other in runs[1:]:
        assert other["loss_history"] == runs[0]["loss_history"]
        assert other["adapter"] == runs[0]["adapter"]
        assert other["probes"] == runs[0]["probes"]


def test_killed_twice_and_continued_elsewhere_from_an_uploaded_checkpoint(directory, undisturbed):
    first = directory("first", **LONG)
    first.run_and_die(die_after_step(6))
    second = directory("second", **LONG)
    shutil.copytree(first.path / "checkpoints/step-00000004", second.path / "resume")
    second.run_and_die(die_after_step(11))
    third = directory("third", **LONG)
    shutil.copytree(second.path / "checkpoints/step-00000008", third.path / "resume")
    assert third.run() == 0
    assert third.result["loss_history"] == undisturbed["loss_history"]
    assert third.result["adapter"] == undisturbed["adapter"]


@pytest.mark.parametrize("function", ["digest", "rename"])
def test_killed_while_it_writes_a_checkpoint_it_goes_on_from_the_one_before(directory, undisturbed, function):
    def wire():
        import loop

        commit = loop.commit_checkpoint

        def commit_or_die(partial, target, about, meter):
            if about["step"] == 8 and function == "digest":
                patch.object(loop, "digest", lambda path: os.kill(os.getpid(), signal.SIGKILL)).start()
            if about["step"] == 8 and function == "rename":
                patch.object(os, "rename", lambda *paths: os.kill(os.getpid(), signal.SIGKILL)).start()
            return commit(partial, target, about, meter)

        patch.object(loop, "commit_checkpoint", commit_or_die).start()

    run = directory(**LONG)
    run.run_and_die(wire)
    assert sorted(path.name for path in (run.path / "checkpoints").glob("step-*")) == ["step-00000004"]
    assert run.run() == 0
    assert run.result["loss_history"] == undisturbed["loss_history"]
    assert [line["step"] for line in run.lines("step")][8] == 5  # after the eighth it began again behind the fourth


def test_incomplete_and_damaged_checkpoints_are_left_aside(directory, undisturbed):
    run = directory(**LONG)
    run.run_and_die(die_after_step(9))
    (run.path / "checkpoints/step-00000008/optimizer.pt").write_bytes(b"damaged")
    shutil.copytree(run.path / "checkpoints/step-00000004", run.path / "checkpoints/step-00000012")
    (run.path / "checkpoints/step-00000012/checkpoint.json").unlink()
    assert run.run() == 0
    assert run.result["loss_history"] == undisturbed["loss_history"]
    ignored = {line["message"].split()[0] for line in run.lines("warning") if line["code"] == "CHECKPOINT_IGNORED"}
    assert ignored == {"checkpoints/step-00000008", "checkpoints/step-00000012"}


@pytest.mark.parametrize("damage", ["no manifest", "damaged file", "other run"])
def test_a_resume_that_cannot_be_continued_is_refused(directory, damage):
    donor = directory("donor", training={"learning_rate": 0.01} if damage == "other run" else {})
    donor.run_and_die(die_after_step(5))
    run = directory()
    shutil.copytree(donor.path / "checkpoints/step-00000003", run.path / "resume")
    if damage == "no manifest":
        (run.path / "resume/checkpoint.json").unlink()
    if damage == "damaged file":
        (run.path / "resume/scheduler.pt").write_bytes(b"")
    error = failure(run)
    assert (error["code"], error["param"]) == ("RESUME_INVALID", "resume")


def test_checkpoints_hold_no_pickle_of_the_process_and_are_rotated(directory):
    run = directory(training={"save_steps": 2, "save_total_limit": 3})
    assert run.run() == 0
    names = sorted(path.name for path in (run.path / "checkpoints").glob("step-*"))
    assert names == ["step-00000006", "step-00000008", "step-00000010"]  # 12 is the last step: the adapter itself
    manifest = json.loads((run.path / "checkpoints" / names[0] / "checkpoint.json").read_text())
    assert manifest["step"] == 6
    files = {file["path"] for file in manifest["files"]}
    assert files == set(os.listdir(run.path / "checkpoints" / names[0])) - {"checkpoint.json"}
    assert "training_args.bin" not in files and {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "meter.json"} <= files


@pytest.mark.parametrize("lora", [{}, {"init_lora_weights": "pissa"}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}])
@pytest.mark.parametrize("bf16", [True, False])
def test_a_checkpoint_is_published_as_a_run_of_so_many_steps_would_be(directory, monkeypatch, lora, bf16):
    """In the type that the processor does not matter for: the checkpoint is proven by what the whole run would be proven by."""
    monkeypatch.setattr(compute, "native_type", lambda: "bfloat16")
    training = {"bf16": bf16, "lr_scheduler_type": "constant", "save_steps": 3, "save_total_limit": 1}
    run, without = directory("run", lora=lora, training=training), directory("without", lora=lora, training=training | {"save_steps": 1000})
    short = directory("short", lora=lora, training=training | {"max_steps": 9})
    assert [one.run() for one in (run, without, short)] == [0, 0, 0]
    assert run.result["adapter"] == without.result["adapter"]  # publishing changes nothing of the training
    assert sorted(os.listdir(run.path / "published")) == ["step-00000009", "step-00000009.json"]
    published = json.loads((run.path / "published/step-00000009.json").read_text())
    assert published["adapter"] == short.result["adapter"] and published["environment"] == short.result["environment"]
    for file in published["adapter"]["files"]:
        assert sha256(run.path / "published/step-00000009" / file["path"]) == file["sha256"]
    for ours, whole in zip(published["probes"], short.result["probes"], strict=True):
        assert ours["first"]["tokens"] == whole["first"]["tokens"]
        assert ours["first"]["adapter"] == pytest.approx(whole["first"]["adapter"], abs=2e-5)
        assert ours["first"]["base"] == whole["first"]["base"]
        assert ours["adapter"]["tokens"] == whole["adapter"]["tokens"]
        assert ours["adapter"]["base_logprobs"] == whole["adapter"]["base_logprobs"]


def test_a_checkpoint_that_learned_nothing_is_not_published_and_the_run_goes_on(directory):
    run = directory(training={"learning_rate": 1e-45, "save_steps": 3})
    assert run.run() == 1  # nothing was learned at the end, either
    assert (run.path / "checkpoints/step-00000009").is_dir() and list((run.path / "published").iterdir()) == []
    assert run.lines("warning")[0]["code"] == "CHECKPOINT_NOT_SERVABLE"


def test_sigterm_checkpoints_after_the_current_step_and_exits_75(directory, undisturbed):
    """A real process with a real signal."""
    run = directory(**LONG)
    process = run.start()
    progress = run.path / "progress.jsonl"
    deadline = time.monotonic() + 90
    while not (progress.exists() and run.lines("step")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.terminate()
    assert process.wait(60) == 75
    result = run.result
    assert result["status"] == "preempted" and result["error"] is None and result["adapter"] is None
    step = result["steps"]
    assert 1 <= step < 18 and (run.path / f"checkpoints/step-{step:08d}/checkpoint.json").exists()
    assert run.lines("checkpoint")[-1]["step"] == step
    assert run.run() == 0
    assert run.result["loss_history"] == undisturbed["loss_history"]
    assert run.result["adapter"] == undisturbed["adapter"]


def test_sigterm_before_the_first_step_stops_at_once(directory, monkeypatch):
    run = directory()

    import train

    original = train.read_spec
    monkeypatch.setattr(train, "read_spec", lambda path: (os.kill(os.getpid(), signal.SIGTERM), original(path))[1])
    assert run.run() == 75
    assert run.result["status"] == "preempted" and run.result["steps"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Failures


def test_an_evaluation_that_is_not_finite_ends_the_run_with_a_result_that_can_be_read(directory):
    run = directory(lora={"lora_alpha": 1e30}, training={"learning_rate": 10, "max_grad_norm": 0, "num_train_epochs": 50, "eval_steps": 1})
    assert failure(run)["code"] == "NON_FINITE_LOSS"
    for text in [(run.path / "result.json").read_text(), (run.path / "progress.jsonl").read_text()]:
        assert "NaN" not in text.replace("is nan", "") and "Infinity" not in text


def test_a_loss_that_is_not_finite_ends_the_run_at_once(directory):
    run = directory(lora={"lora_alpha": 1e30}, training={"learning_rate": 10, "max_grad_norm": 0, "num_train_epochs": 50})
    error = failure(run)
    assert error["code"] == "NON_FINITE_LOSS" and error["param"] == "training.learning_rate"
    assert run.result["steps"] < 10
    assert all(math.isfinite(loss) for _, loss in run.result["loss_history"])


def test_an_adapter_that_learnt_nothing_is_refused(directory):
    assert failure(directory(training={"learning_rate": 1e-45}))["code"] == "ADAPTER_INVALID"


def test_no_supervised_token_at_all(directory):
    rows = [[(tokens, [-100] * len(tokens)) for tokens, _ in row] for row in make_rows(4, seed=1)]
    assert failure(directory(rows=rows))["code"] == "NO_SUPERVISED_TOKENS"


@pytest.mark.parametrize(
    "lora, code, param",
    [
        ({"target_modules": "("}, "NO_TARGET_MODULES", "lora.target_modules"),
        ({"target_modules": r".*\.nowhere"}, "NO_TARGET_MODULES", "lora.target_modules"),
        ({"target_modules": ["q_proj", "k_prj"]}, "NO_TARGET_MODULES", "lora.target_modules"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [9]}, "NO_TARGET_MODULES", "lora.target_modules"),
        ({"layers_to_transform": [0, 9]}, "NO_TARGET_MODULES", "lora.layers_to_transform"),
        ({"rank_pattern": {"k_prj": 2}}, "NO_TARGET_MODULES", "lora.rank_pattern"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"v_proj": 2}}, "NO_TARGET_MODULES", "lora.alpha_pattern"),
        ({"exclude_modules": ["lm_head", "k_prj"]}, "NO_TARGET_MODULES", "lora.exclude_modules"),
        ({"exclude_modules": r".*layers\.9\..*"}, "NO_TARGET_MODULES", "lora.exclude_modules"),
        ({"target_modules": ["lm_head"]}, "TARGET_MODULE_UNSUPPORTED", "lora.target_modules"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "TARGET_MODULE_UNSUPPORTED", "lora.target_modules"),
        ({"target_modules": ["input_layernorm"]}, "TARGET_MODULE_UNSUPPORTED", "lora.target_modules"),
        ({"use_dora": True}, "LORA_FIELD_REFUSED", "lora.use_dora"),
        ({"modules_to_save": ["lm_head"]}, "LORA_FIELD_REFUSED", "lora.modules_to_save"),
        ({"bias": "all"}, "LORA_FIELD_REFUSED", "lora.bias"),
        ({"lora_bias": True}, "LORA_FIELD_REFUSED", "lora.lora_bias"),
        ({"trainable_token_indices": [1]}, "LORA_FIELD_REFUSED", "lora.trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "LORA_FIELD_REFUSED", "lora.layer_replication"),
        ({"target_parameters": ["x"]}, "LORA_FIELD_REFUSED", "lora.target_parameters"),
        ({"megatron_config": {"a": 1}}, "LORA_FIELD_REFUSED", "lora.megatron_config"),
        *(({"init_lora_weights": init}, "SPEC_INVALID", "lora.init_lora_weights") for init in ("pissa_niter_5", "corda", "eva", "loftq", "lora_ga")),
        ({"rr": 8}, "SPEC_INVALID", "lora.rr"),
        ({"r": 0}, "SPEC_INVALID", "lora.r"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_served_is_refused_by_name(directory, lora, code, param):
    error = failure(directory(lora=lora))
    assert (error["code"], error["param"]) == (code, param)
    if code == "NO_TARGET_MODULES":
        assert "q_proj" in error["message"]  # the names that do exist


def test_a_config_that_peft_wrote_can_be_pasted(directory):
    from peft import LoraConfig

    config = json.loads(json.dumps(LoraConfig(r=4, target_modules=["q_proj"]).to_dict(), default=sorted))
    assert directory(lora=config, training={"max_steps": 1}).run() == 0


def test_bad_inputs(directory, tmp_path):
    run = directory("no-base", base=tmp_path)
    assert (failure(run)["code"], failure(run)["param"]) == ("BASE_UNREADABLE", "base")

    run = directory("bad-shard")
    (run.path / "shards/train-00001.arrow").write_bytes(b"not arrow")
    error = failure(run)
    assert (error["code"], error["param"]) == ("SHARD_INVALID", "shards/train-00001.arrow")

    run = directory("outside-the-vocabulary", rows=[[([1, 999], [-100, 999])]])
    assert failure(run)["code"] == "SHARD_INVALID"

    run = directory("leaking-label", rows=[[([1, 5], [-100, 5]), ([6, 7], [6, 7])]])
    assert failure(run)["code"] == "SHARD_INVALID"

    run = directory("bad-json")
    (run.path / "spec.json").write_text("{")
    assert failure(run)["code"] == "SPEC_INVALID"

    run = directory("unknown-field", training={"learning_rte": 1})
    assert failure(run)["param"] == "training.learning_rte"


def test_machine_failures_have_codes():
    import torch
    import train

    assert train.explain(OSError(28, "No space left on device")).code == "DISK_FULL"
    assert train.explain(torch.OutOfMemoryError("CUDA out of memory")).code == "OUT_OF_MEMORY"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert train.explain(caught.value).code == "OUT_OF_MEMORY"
    assert train.explain(KeyError("x")).code == "INTERNAL"


def test_a_full_disk(directory, tmp_path):
    """Uses a real, tiny file system, if this machine allows mounting one."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if os.system(f"mount -t tmpfs -o size=160k tmpfs {mounted} 2>/dev/null") != 0:
        pytest.skip("may not mount a file system here")
    try:
        run = directory("small/run")
        error = failure(run)
        assert error["code"] == "DISK_FULL"
        assert list((run.path / "checkpoints").glob("step-*")) == []
    finally:
        os.system(f"umount -l {mounted}")


def test_every_error_code_is_documented():
    source = "".join(path.read_text() for path in TRAINER.glob("*.py"))
    raised = set(re.findall(r'TrainerError\(\s*"([A-Z_]+)"', source))
    programs = "".join((TRAINER / name).read_text().split('"""')[1] for name in ("train.py", "merge.py"))
    documented = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bINTERNAL\b", programs))
    assert raised == documented


# ---------------------------------------------------------------------------------------------------------------------
# A run that begins with an adapter


def begin_with(run, adapter):
    """Fills `run` as the courier does for a spec with init_from."""
    shutil.copytree(adapter, run.path / "init")
    run.spec["init"] = {"name": "pirate@1", "digest": "sha256:" + "1" * 64}
    (run.path / "spec.json").write_text(json.dumps(run.spec))
    return run


def test_training_begins_with_the_weights_of_a_version_in_any_rank_and_scaling(directory):
    first = directory("first")
    assert first.run() == 0
    learned = first.result["evaluation"]["adapter_loss"]
    standing_still = {"max_steps": 1, "learning_rate": 1e-9}
    for name, lora in (("same", {}), ("higher", {"r": 6, "lora_alpha": 21}), ("rslora", {"r": 16, "use_rslora": True})):
        again = begin_with(directory(name, lora=lora, training=standing_still), first.path / "adapter")
        assert again.run() == 0
        assert again.result["evaluation"]["adapter_loss"] == pytest.approx(learned, abs=2e-3)
        assert again.result["evaluation"]["base_loss"] == first.result["evaluation"]["base_loss"]
    # Rounding of B / scaling apart, the weights themselves are those of the version.
    same = directory("plain", training=standing_still)
    assert same.run() == 0 and same.result["evaluation"]["adapter_loss"] > learned + 0.1

    further = begin_with(directory("further", lora={"r": 8}), first.path / "adapter")
    assert further.run() == 0
    assert further.result["evaluation"]["adapter_loss"] < learned


def test_a_run_that_began_with_a_version_resumes_bit_for_bit_and_never_from_a_run_that_did_not(directory):
    first = directory("first")
    assert first.run() == 0
    whole = begin_with(directory("whole"), first.path / "adapter")
    assert whole.run() == 0
    shutil.copytree(whole.path / "checkpoints/step-00000009", (killed := begin_with(directory("killed"), first.path / "adapter")).path / "resume")
    assert killed.run() == 0
    assert killed.result["adapter"] == whole.result["adapter"]
    other = directory("other")
    shutil.copytree(whole.path / "checkpoints/step-00000009", other.path / "resume")
    assert failure(other)["code"] == "RESUME_INVALID"


@pytest.mark.parametrize(
    "lora, param, words",
    [({"r": 2}, "lora.r", "rank 4"), ({"target_modules": ["q_proj"]}, "lora.target_modules", "which this run leaves out")],
    ids=["rank", "modules"],
)
def test_a_version_that_does_not_fit_into_the_run_is_refused(directory, lora, param, words):
    first = directory("first", training={"max_steps": 3})
    assert first.run() == 0
    error = failure(begin_with(directory("second", lora=lora), first.path / "adapter"))
    assert (error["code"], error["param"]) == ("INIT_FROM_MISMATCH", param) and words in error["message"]
