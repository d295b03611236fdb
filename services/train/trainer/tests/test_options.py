"""Each option of the training changes what it should, and nothing while it is left alone; a resume stays exact with it."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import loop
import packing
import pytest
import spec
import torch
import train
from conftest import make_rows
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import LabelSmoother

SHORT = {"num_train_epochs": 1, "save_steps": 2}


def curve(run) -> list[float]:
    assert run.run() == 0, run.result["error"]
    return [loss for _, loss in run.result["loss_history"]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_base):
    from conftest import Directory

    return curve(Directory(tmp_path_factory.mktemp("plain") / "run", tiny_base, training=SHORT))


NEUTRAL = {
    "optim": "adamw_torch_fused",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "label_smoothing_factor": 0,
    "neftune_noise_alpha": 0,
    "loraplus_lr_ratio": None,
    "data_seed": 7,  # as seed
    "lr_scheduler_kwargs": {},
    "full_determinism": False,
    "warmup_ratio": 0,
    "output_dir": "./output",
}


def test_the_defaults_written_out_change_no_bit(directory, plain):
    assert curve(directory(training=SHORT | NEUTRAL)) == plain


CHANGING = [
    {"optim": "adafactor"},
    {"optim": "sgd"},
    {"optim": "adagrad"},
    {"optim": "rmsprop"},
    {"adam_beta1": 0.5},
    {"adam_beta2": 0.9},
    {"adam_epsilon": 1e-2},
    {"label_smoothing_factor": 0.1},
    {"neftune_noise_alpha": 5},
    {"loraplus_lr_ratio": 16},
    {"data_seed": 1},
    {"warmup_ratio": 0.5},
    {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.5}},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
    {"max_grad_norm": 0},
]


@pytest.mark.parametrize("training", CHANGING, ids=json.dumps)
def test_an_option_changes_the_training(directory, plain, training):
    assert curve(directory(training=SHORT | training)) != plain


def test_adamw_is_the_same_fused_or_not(directory, plain):
    assert curve(directory(training=SHORT | {"optim": "adamw_torch"})) == pytest.approx(plain, rel=1e-3)


def test_full_determinism(directory, plain, monkeypatch):
    monkeypatch.setattr("os.environ", dict(__import__("os").environ))
    try:
        assert curve(directory(training=SHORT | {"full_determinism": True})) == plain  # on a CPU it is exact anyway
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", [{"optim": "adafactor"}, {"neftune_noise_alpha": 5, "loraplus_lr_ratio": 4, "label_smoothing_factor": 0.1}], ids=json.dumps)
def test_a_resume_is_exact_with_it(directory, options):
    whole = directory("whole", training=SHORT | options)
    expected = curve(whole)
    continued = directory("continued", training=SHORT | options)
    shutil.copytree(whole.path / "checkpoints/step-00000002", continued.path / "resume")
    assert curve(continued) == expected
    assert [line["step"] for line in continued.lines("step")] == [3, 4, 5, 6]
    assert continued.result["adapter"] == whole.result["adapter"]


def test_evaluation_and_probes_know_nothing_of_noise_and_smoothing(directory):
    """With a learning rate near zero the adapter evaluates as the base does, whatever the options do to the training loss."""
    run = directory(training=SHORT | {"learning_rate": 1e-6, "neftune_noise_alpha": 100, "label_smoothing_factor": 0.5, "eval_steps": 2})
    assert run.run() == 0
    evaluation = run.result["evaluation"]
    assert evaluation["adapter_loss"] == pytest.approx(evaluation["base_loss"], rel=1e-3)
    assert [line["eval_loss"] for line in run.lines("eval")] == pytest.approx([evaluation["base_loss"]] * 3, rel=1e-3)
    assert abs(run.result["loss_history"][0][1] - evaluation["base_loss"]) > 0.1
    probe = run.result["probes"][0]
    assert probe["adapter"]["logprobs"] == pytest.approx(probe["adapter"]["base_logprobs"], abs=0.01)


def test_label_smoothing_is_that_of_transformers(tiny_base):
    """A flattened batch and transformers' padded rows give the same loss, normalised over the supervised tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attn_implementation="by_sequence")
    sequences = [sequence for row in make_rows(3, seed=5) for sequence in row]
    batch = packing.flatten(
        [{"input_ids": as_array(tokens), "labels": as_array(labels), "seq_lengths": as_array([len(tokens)])} for tokens, labels in sequences]
    )
    items = batch["labels"].numel() - 1
    ours = packing.sum_of_losses(model, batch, num_items_in_batch=items, label_smoothing=0.2)

    width = max(len(tokens) for tokens, _ in sequences)
    padded = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in sequences])
    targets = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in sequences])
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens, _ in sequences])
    model.set_attn_implementation("sdpa")
    theirs = LabelSmoother(epsilon=0.2)({"logits": model(input_ids=padded, attention_mask=mask).logits}, targets, shift_labels=True)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.item() != pytest.approx(packing.sum_of_losses(model, batch, items).item(), rel=1e-3)


def as_array(values):
    import numpy as np

    return np.array(values, dtype=np.int32)


def test_noise_is_scaled_by_each_sequences_own_length():
    embedding, width, lengths = torch.nn.Embedding(4, 64), 64, [4, 100, 1]
    holder: Any = SimpleNamespace(noise_alpha=5.0, noise_bounds=torch.tensor([0, 4, 104, 105], dtype=torch.int32))
    output = torch.zeros(1, 105, width)
    noise = loop.LoraTrainer.add_noise(holder, embedding.train(), None, output)
    for part, length in zip(noise[0].split(lengths), lengths, strict=True):
        largest = 5.0 / (length * width) ** 0.5
        assert 0.9 * largest < part.abs().max() <= largest
    assert loop.LoraTrainer.add_noise(holder, embedding.eval(), None, output) is output


@pytest.mark.parametrize(
    ("schedule", "given", "words"),
    [("polynomial", {"lr_end": 1}, "must be smaller than initial lr"), ("warmup_stable_decay", {}, "num_decay_steps"), ("cosine_with_min_lr", {}, "min_lr")],
)
def test_a_schedule_that_cannot_be_made_is_an_error_of_its_arguments(directory, schedule, given, words):
    run = directory(training={"lr_scheduler_type": schedule, "lr_scheduler_kwargs": given})
    assert run.run() == 1
    error = run.result["error"]
    assert (error["code"], error["param"]) == ("SPEC_INVALID", "training.lr_scheduler_kwargs")
    assert words in error["message"]


def test_lora_plus_gives_lora_b_a_rate_of_its_own(directory, monkeypatch):
    groups = []
    create = loop.LoraTrainer.create_optimizer

    def spy(trainer, model=None):
        optimizer = create(trainer, model)
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        groups.extend((group["lr"], group["weight_decay"], [names[id(parameter)] for parameter in group["params"]]) for group in optimizer.param_groups)
        return optimizer

    monkeypatch.setattr(loop.LoraTrainer, "create_optimizer", spy)
    run = directory(training={"max_steps": 1, "learning_rate": 0.01, "loraplus_lr_ratio": 16, "weight_decay": 0.1})
    assert run.run() == 0
    of = {part: {(round(lr, 6), decay) for lr, decay, names in groups for name in names if part in name} for part in (".lora_A.", ".lora_B.")}
    assert of == {".lora_A.": {(0.01, 0.1)}, ".lora_B.": {(0.16, 0.1)}}
    assert sum(len(names) for _, _, names in groups) == 2 * 7 * 3  # each of seven modules in three layers, with A and B, is in exactly one group


def test_a_new_field_does_not_stop_a_run_under_way(tmp_path):
    """The expected fingerprint was made by the code before these options existed."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/train-00000.arrow").write_bytes(b"x" * 100)
    old: dict[str, Any] = {
        "version": 1,
        "run_id": "01KB000000000000000000RN01",
        "attempt": 1,
        "base": {"name": "tiny", "revision": "r1", "digest": "sha256:" + "0" * 64},
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0, "target_modules": "all-linear", "use_rslora": False, "init_lora_weights": True},
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": 3,
            "max_steps": -1,
            "learning_rate": 0.0002,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "weight_decay": 0,
            "max_grad_norm": 1,
            "logging_steps": 1,
            "save_steps": 50,
            "save_total_limit": 2,
            "gradient_checkpointing": False,
            "seed": 42,
            "bf16": True,
        },
    }

    def fingerprint(**training) -> str:
        (tmp_path / "spec.json").write_text(json.dumps(old | {"training": old["training"] | training}))
        return train.fingerprint_of(spec.read_spec(tmp_path / "spec.json"), tmp_path / "shards")

    assert fingerprint() == "4f6640690ed7170aacdc188770b221c49e9f909d484d3249d84f86431bbbcdd8"
    assert fingerprint(optim="adamw_torch_fused", adam_beta1=0.9, neftune_noise_alpha=None) == fingerprint()
    assert len({fingerprint(), fingerprint(optim="sgd"), fingerprint(data_seed=1), fingerprint(label_smoothing_factor=0.1)}) == 4
