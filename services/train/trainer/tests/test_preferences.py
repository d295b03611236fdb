"""Learning from preferences: TRL's numbers, exact packing, references that survive a kill, and what is told of it."""

import contextlib
import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path
from unittest.mock import patch

import numpy as np
import packing
import preferences
import pytest
import torch
from conftest import VOCABULARY, make_pairs, make_rows, write_shard
from peft import LoraConfig, get_peft_model
from spec import TrainerError
from test_ranks import same, torchrun
from test_train import begin_with, die_after_step, failure
from transformers import AutoModelForCausalLM
from trl_cases import CASES, directory_of, run_in_order

METHODS = ["dpo", "orpo", "simpo", "kto"]
CURVES = json.loads(Path(__file__).with_name("trl_curves.json").read_text())
EXACT = {"lora": {"lora_dropout": 0.0}, "training": {"num_train_epochs": 2, "bf16": False, "learning_rate": 0.01, "save_steps": 3}}


def data(method: str, count: int = 12, packed: int = 2) -> dict:
    unpaired = method == "kto"
    return {
        "method": {"type": method},
        "rows": make_pairs(count, seed=1, packed=packed, unpaired=unpaired),
        "held_out": make_pairs(6, seed=2, packed=1, unpaired=unpaired),
    }


def losses(run) -> list[float]:
    return [loss for _, loss in run.result["loss_history"]]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("name", CASES)
def test_losses_and_margins_are_those_of_trl(name, tmp_path, tiny_base):
    """TRL's curves were made by tests/bench/beside_trl.py: the same tokens and initial A, 50 steps in float32."""
    lines, expected = run_in_order(directory_of(name, tmp_path / "run", tiny_base)), CURVES[name]
    assert len(lines) == len(expected["loss"]) == 50
    assert [line["loss"] for line in lines] == pytest.approx(expected["loss"], abs=1e-4, rel=1e-4)
    if "margin" in expected:
        assert [line["rewards_margin"] for line in lines] == pytest.approx(expected["margin"], abs=1e-4, rel=1e-4)
        assert max(abs(margin) for margin in expected["margin"]) > 0.1  # something was learned
    else:
        assert sum(expected["loss"][-10:]) < sum(expected["loss"][:10]) - 1  # something was learned


def test_label_smoothing_of_dpo_is_cdpo():
    """TRL 1.16 ignores it with `sigmoid`; here it is the conservative DPO that older versions had: a share of the pairs counts as swapped."""
    scores = preferences.Scores(*(torch.tensor(values) for values in ([-3.0, -5.0], [2.0, 2.0], [0.0, 0.0], [3.0, 0.0], [2.0, 0.0])))
    reference, sides = torch.tensor([-4.0, -4.5]), torch.tensor([1, 0])
    method = {"beta": 0.2, "label_smoothing": 0.1, "loss_type": "sigmoid", "sft_weight": 0}
    loss, rewards = preferences.dpo(method, scores, reference, sides, preferences.Totals(1, 2))
    sigmoid = 1 / (1 + math.exp(-0.2 * 1.5))
    assert loss.item() == pytest.approx(-0.9 * math.log(sigmoid) - 0.1 * math.log(1 - sigmoid))
    assert rewards.tolist() == pytest.approx([0.2, -0.1])


def test_the_first_loss_of_dpo_is_ln_2_and_its_margin_0(directory):
    run = directory(**data("dpo"), **EXACT)
    assert run.run() == 0
    first = run.lines("step")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards_chosen"] == first["rewards_rejected"] == first["rewards_margin"] == first["rewards_accuracy"] == 0


def test_in_bf16_too(directory, monkeypatch):
    import compute

    monkeypatch.setattr(compute, "native_type", lambda: compute.BF16)
    run = directory(**data("dpo"), lora={"lora_dropout": 0.0}, training={"num_train_epochs": 1})
    assert run.run() == 0
    first = run.lines("step")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["rewards_margin"] == 0  # the same numbers with and without gradients
    assert losses(run)[-1] < math.log(2)


@pytest.fixture
def model(tiny_base):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attn_implementation="by_sequence")
    return get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))


def read(path, method: str):
    objective = preferences.Preferences(preferences_of(method))
    write_shard(path / "train-00000.arrow", make_pairs(4, seed=3, packed=2, unpaired=method == "kto"))
    rows = objective.read(path, "train", VOCABULARY)
    rows.reference[:] = np.linspace(-40, -20, rows.reference.size).reshape(rows.reference.shape)
    return objective, rows


def preferences_of(method: str) -> dict:
    import spec

    return spec.check_method({"type": method, **({"sft_weight": 0.5} if method == "dpo" else {})})


def alone(row: dict, count: int) -> list[dict]:
    """The row's sequences, `count` at a time, as rows of their own."""
    ends = np.concatenate([[0], np.cumsum(row["seq_lengths"])])
    rows = []
    for first in range(0, len(row["sides"]), count):
        tokens, sequences = slice(ends[first], ends[first + count]), slice(first, first + count)
        one = {name: row[name][tokens] for name in ("input_ids", "labels")} | {name: row[name][sequences] for name in ("seq_lengths", "sides")}
        rows.append(one | {"reference": row["reference"][:, sequences]})
    return rows


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_of_packed_pairs_equal_those_of_each_pair_alone(method, model, tmp_path):
    objective, rows = read(tmp_path, method)
    packed = [objective.flatten([rows[0], rows[1]])]
    single = [objective.flatten([one]) for index in (0, 1) for one in alone(rows[index], 1 + objective.paired)]
    totals = objective.begin_step(model, packed)
    assert (totals.pairs, len(single)) == ((4, 4) if objective.paired else (8, 8))

    def run(batches):
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss, _ = objective.loss(model, batch, totals)
            loss.backward()
            total += loss.item()
        return total, torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    (loss, gradients), (expected_loss, expected) = run(packed), run(single)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.norm() > 0 and torch.allclose(gradients, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_made_only_where_the_loss_needs_them(method, tmp_path):
    objective, rows = read(tmp_path, method)
    row = rows[0]
    batch, answers = objective.flatten([row]), int((row["labels"] != -100).sum())
    prompts = 2 * 3  # orpo's supervised loss is that of the chosen answers with their prompts of 4 tokens
    assert len(batch["logits_to_keep"]) == answers + (prompts if method == "orpo" else 0)


def test_mismatched_answers_of_kto_are_those_of_the_sequence_before(tmp_path):
    rows_of_one = [row[:1] for row in make_pairs(2, seed=5, unpaired=True)]
    several = make_pairs(1, seed=6, packed=2, unpaired=True)
    write_shard(tmp_path / "train-00000.arrow", several + rows_of_one)
    rows = preferences.Preferences(preferences_of("kto")).read(tmp_path, "train", VOCABULARY)

    def made(index):
        row = rows.mismatch(index)
        return [tokens.tolist() for tokens in np.split(row["input_ids"], np.cumsum(row["seq_lengths"])[:-1])]

    first, longest = several[0], max(len(tokens) for row in [*several, *rows_of_one] for tokens, _, _ in row)
    assert made(0) == [(prompt[0][:4] + before[0][4:])[:longest] for prompt, before in zip(first, [first[-1], *first[:-1]], strict=True)]
    assert made(1) == [(rows_of_one[0][0][0][:4] + first[-1][0][4:])[:longest]]
    assert made(2) == [(rows_of_one[1][0][0][:4] + rows_of_one[0][0][0][4:])[:longest]]


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_counts_pairs_of_the_step_not_of_the_batch(directory, method):
    """One batch of 4 rows, or 4 of 1, of different sizes: the same steps; kto's divergence is the step's, too."""
    unpaired = method == "kto"
    rows = make_pairs(8, seed=3, packed=1, unpaired=unpaired) + make_pairs(8, seed=4, packed=3, unpaired=unpaired)
    options = {"method": {"type": method, **({"sft_weight": 1} if method == "dpo" else {})}, "rows": rows, "held_out": [], "lora": EXACT["lora"]}
    common = EXACT["training"] | {"num_train_epochs": 1}
    whole = directory("whole", **options, training={**common, "per_device_train_batch_size": 4})
    parts = directory("parts", **options, training={**common, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4})
    assert whole.run() == parts.run() == 0
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-3)
    for a, b in zip(whole.lines("step"), parts.lines("step"), strict=True):
        assert a["rewards_margin"] == pytest.approx(b["rewards_margin"], abs=1e-3) and a["rewards_accuracy"] == pytest.approx(b["rewards_accuracy"], abs=0.2)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_two_ranks_train_what_one_process_trains(directory, method):
    options = data(method, count=16) | {"lora": EXACT["lora"]}
    common = EXACT["training"] | {"num_train_epochs": 1}
    one = directory("one", **options, training={**common, "per_device_train_batch_size": 4})
    two = directory("two", **options, training={**common, "per_device_train_batch_size": 2})
    assert one.run() == 0 and torchrun(two).wait(120) == 0
    same(two, one)
    for a, b in zip(one.lines("step"), two.lines("step"), strict=True):
        for name in ("rewards_chosen", "rewards_rejected", "rewards_margin"):
            assert a[name] == pytest.approx(b[name], abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Kills and resumes

LONG = {"training": {"num_train_epochs": 2, "save_steps": 4, "logging_steps": 1}}  # with dropout


@pytest.fixture(scope="module", params=["dpo", "kto", "simpo"])
def undisturbed(request, tmp_path_factory, tiny_base):
    from conftest import Directory

    run = Directory(tmp_path_factory.mktemp("undisturbed") / "run", tiny_base, **data(request.param), **LONG)
    assert run.run() == 0
    return request.param, run


def told(run) -> list[tuple]:
    """What the last process told of its steps, without times."""
    names = ("step", "loss", "rewards_chosen", "rewards_rejected", "rewards_margin", "rewards_accuracy")
    return [tuple(line[name] for name in names) for line in run.lines("step")]


def is_the_same(run, other) -> None:
    assert run.result["loss_history"] == other.result["loss_history"]  # bit for bit
    assert run.result["adapter"] == other.result["adapter"]
    assert run.result["evaluation"] == other.result["evaluation"]
    assert told(run)[-1] == told(other)[-1]


@pytest.mark.parametrize("step", [2, 6])
def test_killed_at_any_step_it_ends_with_the_same_bytes(directory, undisturbed, step):
    method, whole = undisturbed
    run = directory(**data(method), **LONG)
    run.run_and_die(die_after_step(step))
    assert run.run() == 0
    is_the_same(run, whole)


def test_continued_elsewhere_it_takes_the_reference_from_the_checkpoint(directory, undisturbed, monkeypatch):
    method, whole = undisturbed
    first = directory("first", **data(method), **LONG)
    first.run_and_die(die_after_step(6))
    second = directory("second", **data(method), **LONG)
    shutil.copytree(first.path / "checkpoints/step-00000004", second.path / "resume")
    assert (second.path / "resume" / preferences.REFERENCE).exists() == (method != "simpo")
    monkeypatch.setattr(preferences, "read_partial", lambda *arguments: pytest.fail("the reference was computed again"))
    assert second.run() == 0
    is_the_same(second, whole)


def test_killed_in_the_middle_of_the_reference_it_goes_on_there(directory, undisturbed):
    method, whole = undisturbed
    if method == "simpo":
        return  # has none

    def wire():
        import train

        calls = itertools.count(1)  # it is called once for each pass of the reference, before any step
        patch.object(train.Attempt, "sign_of_life", lambda self: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == 4 else None).start()

    run = directory(**data(method), **LONG)
    run.run_and_die(wire)
    partial = run.path / "reference-0.partial"
    kept = partial.read_bytes()
    assert len(kept) > preferences.KEY_LENGTH
    partial.write_bytes(kept + b"ha")  # as if it had died in the middle of a write
    assert run.run() == 0
    assert partial.read_bytes().startswith(kept)
    is_the_same(run, whole)


class Calm:
    """An attempt that is not to stop."""

    stop_wanted = False

    def sign_of_life(self) -> None:
        pass


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_reference_of_an_adapter_that_begins_as_a_version_is_that_version(method, model, tmp_path):
    """The model's B is not zero, as with init_from."""
    _, rows = read(tmp_path, method)
    how = {"key": "k" * 64, "checkpoint": None, "batch_size": 2, "autocast": contextlib.nullcontext, "attempt": Calm()}
    with pytest.raises(TrainerError, match="answer as the reference"):
        preferences.Preferences(preferences_of(method)).prepare(model, rows, directory=tmp_path, **how)
    objective = preferences.Preferences(preferences_of(method), from_version=True)
    (tmp_path / "again").mkdir()
    assert objective.prepare(model, rows, directory=tmp_path / "again", **how)
    with torch.no_grad():
        enabled = torch.cat([preferences.score(model, objective.flatten([rows[index]])).logprobs for index in range(len(rows))])
    assert rows.reference[0].tolist() == pytest.approx(enabled.tolist(), rel=1e-5)
    base, now = objective.measure_base(model, rows), objective.measure(model, rows)
    told = objective.evaluation(base, now)["preference"]
    assert told["margin"] == 0 and told["accuracy"] == 0  # against the version
    assert abs(told["chosen_logprob_change"]) > 0.01  # against the base


def test_what_belongs_to_other_settings_is_computed_anew(tmp_path):
    path = tmp_path / "reference-0.partial"
    assert preferences.read_partial(path, "a" * 64, [2, 3]) == []
    path.write_bytes(path.read_bytes() + np.arange(4, dtype="<f4").tobytes())
    assert [values.tolist() for values in preferences.read_partial(path, "a" * 64, [2, 3])] == [[0, 1]]
    assert len(path.read_bytes()) == 64 + 8
    assert preferences.read_partial(path, "b" * 64, [2, 3]) == []


def test_sigterm_in_the_reference_pass_stops_at_once(directory, monkeypatch):
    run = directory(**data("dpo"), **EXACT)
    original = preferences.read_partial
    monkeypatch.setattr(preferences, "read_partial", lambda *given: (os.kill(os.getpid(), signal.SIGTERM), original(*given))[1])
    assert run.run() == 75
    assert run.result["status"] == "preempted" and run.result["steps"] == 0
    monkeypatch.undo()
    assert run.run() == 0


def test_a_checkpoint_is_not_continued_with_another_method(directory):
    import train

    run = directory(**data("dpo"))
    shards, seen = run.path / "shards", set()
    for method in ({"type": "supervised"}, {"type": "dpo"}, {"type": "dpo", "beta": 0.2}, {"type": "dpo", "loss_type": "ipo"}, {"type": "orpo"}):
        (run.path / "spec.json").write_text(json.dumps(run.spec | {"method": method}))
        seen.add(train.fingerprint_of(train.read_spec(run.path / "spec.json"), shards))
    assert len(seen) == 5
    (run.path / "spec.json").write_text(json.dumps(run.spec | {"method": {"type": "dpo", "beta": 0.1, "label_smoothing": None}}))
    assert train.fingerprint_of(train.read_spec(run.path / "spec.json"), shards) in seen  # the defaults, written out


def test_fingerprints_of_supervised_runs_stay_what_they_were(tmp_path):
    """So that a run goes on from its checkpoint after an upgrade. The value is that of the version before preferences."""
    import train

    minimal = {"version": 1, "run_id": "r", "attempt": 1, "base": {"name": "b", "revision": "1", "digest": "d"}, "lora": {}, "training": {}}
    (tmp_path / "spec.json").write_text(json.dumps(minimal))
    (tmp_path / "train-00000.arrow").write_bytes(bytes(100))
    assert train.fingerprint_of(train.read_spec(tmp_path / "spec.json"), tmp_path) == "7085e54b19c46d30a7e85052ce489c209e4d626939a935c874a097b1067cd5eb"


# ---------------------------------------------------------------------------------------------------------------------
# What is told


@pytest.mark.parametrize("method", METHODS)
def test_the_evaluation_tells_of_held_out_pairs(directory, method):
    options = data(method, count=60, packed=3)
    options["held_out"] = [row[:2] for row in options["rows"][:40]]  # seen in training, so that the outcome is certain
    run = directory(
        **options,
        lora={"lora_dropout": 0.0, "r": 8},
        training={"num_train_epochs": 3, "learning_rate": 0.01, "bf16": False, "eval_steps": 30, "eval_budget": "all"},
    )
    assert run.run() == 0
    evaluation = run.result["evaluation"]
    told = evaluation["preference"]
    rows = evaluation["rows"]  # some of the 40, as many as fit a twentieth of the time
    assert told["pairs"] == (2 * rows if method == "kto" else rows) >= 16
    assert 0 <= told["accuracy_low"] < told["accuracy"] < told["accuracy_high"] <= 1 or told["accuracy"] == 1 == told["accuracy_high"]
    assert told["accuracy"] > 0.6 and told["margin"] > 0
    assert told["chosen_logprob_change"] == pytest.approx(evaluation["base_loss"] - evaluation["adapter_loss"])
    chosen = [labels for row in options["held_out"][:rows] for _, labels, side in row if side == 1]
    assert evaluation["supervised_tokens"] == sum(len(labels) - 4 for labels in chosen)
    assert 0 <= evaluation["base_accuracy"] <= 1
    assert run.result["eval_history"][-1] == [run.result["steps"], told["loss"]]
    if method == "dpo":
        assert told["loss"] < math.log(2)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_run_that_begins_with_a_version_compares_with_that_version(directory, method):
    options = data(method, count=24, packed=3)
    options["held_out"] = [row[:2] for row in options["rows"][:12]]
    learning = {"num_train_epochs": 2, "learning_rate": 0.01, "bf16": False, "eval_budget": "all"}
    lora = {"lora_dropout": 0.0, "r": 8}
    first = directory("first", **options, lora=lora, training=learning)
    assert first.run() == 0
    before = first.result["evaluation"]
    assert before["preference"]["margin"] > 0.5

    standing_still = begin_with(directory("second", **options, lora=lora, training=learning | {"max_steps": 1, "learning_rate": 1e-9}), first.path / "adapter")
    assert standing_still.run() == 0
    now = standing_still.result["evaluation"]
    assert now["base_loss"] == before["base_loss"]
    assert now["adapter_loss"] == pytest.approx(before["adapter_loss"], abs=2e-3)
    # Rounding is others on other processors, and small beside what the version had learned.
    assert abs(now["preference"]["margin"]) < before["preference"]["margin"] / 50
    if method == "dpo":
        assert losses(standing_still)[0] == pytest.approx(math.log(2), abs=1e-3)
        assert now["preference"]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_the_interval_is_wilsons():
    """Values of statsmodels.stats.proportion.proportion_confint(..., method="wilson")."""
    assert preferences.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert preferences.wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert preferences.wilson(50, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals

PAIR = make_pairs(1, seed=1, packed=1)[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([PAIR[::-1]], "chosen .1. before rejected"),
        ([PAIR[:1], PAIR[1:]], "pairs within a row"),
        ([[PAIR[0], (*PAIR[1][:2], 7)]], "must be 1"),
        ([[PAIR[0], ([1, 2, 3], [-100] * 3, 0)]], "no answer"),
        (make_rows(2, seed=1), "sides"),
    ],
    ids=["swapped", "torn apart", "side 7", "no answer", "no sides"],
)
def test_shards_that_hold_no_pairs_are_refused(directory, rows, words):
    error = failure(directory(method={"type": "dpo"}, rows=rows, held_out=[]))
    assert error["code"] == "SHARD_INVALID"
    import re

    assert re.search(words, error["message"])


@pytest.mark.parametrize(
    ("method", "training", "param"),
    [
        ({"type": "dpo", "beta": 0}, {}, "method.beta"),
        ({"type": "dpo", "loss_type": "apo_zero"}, {}, "method.loss_type"),
        ({"type": "dpo", "label_smoothing": 0.5}, {}, "method.label_smoothing"),
        ({"type": "kto", "desirable_weight": "much"}, {}, "method.desirable_weight"),
        ({"type": "orpo"}, {"label_smoothing_factor": 0.1}, "training.label_smoothing_factor"),
    ],
)
def test_settings_are_checked(directory, method, training, param):
    error = failure(directory(method=method, rows=[PAIR], training=training))
    assert (error["code"], error["param"]) == ("SPEC_INVALID", param)


def test_a_reference_of_other_sequences_is_noticed(directory, monkeypatch):
    """As if packed sequences were taken for others: the untrained adapter would not answer as the base."""
    original = packing.Rows.__getitem__

    def shifted(self, index):
        row = original(self, index)
        if index == len(self) - 1:
            row["input_ids"] = (row["input_ids"] + noise[0]) % VOCABULARY
        return row

    noise, prove = [0], preferences.Preferences.prove_start
    monkeypatch.setattr(packing.Rows, "__getitem__", shifted)
    monkeypatch.setattr(preferences.Preferences, "prove_start", lambda *given: (noise.__setitem__(0, 1), prove(*given)))
    error = failure(directory(**data("dpo"), **EXACT))
    assert error["code"] == "PACKING_SELF_TEST_FAILED" and "answer as the reference" in error["message"]
