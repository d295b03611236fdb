"""The number format: which one a processor gets, what a result says of it, and that a resumed run keeps its own."""

import json
import shutil
from pathlib import Path

import compute
import pytest
from canonicalise import lora_layers
from conftest import make_rows

PROCESSORS = json.loads((Path(__file__).parents[4] / "packages/runtime/testdata/processors.json").read_text())  # the services' test reads it too


@pytest.fixture
def processor(monkeypatch):
    """Makes this machine look like one that computes natively in the type it is called with."""
    return lambda compute_type: monkeypatch.setattr(compute, "native_type", lambda: compute_type)


@pytest.mark.parametrize("case", PROCESSORS, ids=lambda case: case["processor"])
def test_flags_and_the_limit_decide(tmp_path, case):
    file = tmp_path / "cpuinfo"
    if case["cpuinfo"] is not None:
        file.write_text(case["cpuinfo"])
    assert compute.native_type(file, case["env"]) == case["type"]


@pytest.mark.parametrize("compute_type", ["bfloat16", "float32"])
def test_a_result_says_what_it_was_computed_in(directory, processor, compute_type):
    processor(compute_type)
    run = directory()
    assert run.run() == 0, run.result["error"]
    environment = run.result["environment"]
    assert environment["compute_type"] == compute_type
    assert environment["seed"] == 7 and environment["threads"] == 1
    assert set(environment["libraries"]) == {"python", "torch", "transformers", "peft"}


def test_float32_is_float32_in_every_phase_and_publishes_bf16(directory, processor):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    processor("float32")
    run = directory()
    assert run.run() == 0, run.result["error"]
    weights = load_file(run.path / "adapter/adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}

    # Exact to the last bits, which takes that no product was in bf16: neither the base's nor the adapter's.
    base = AutoModelForCausalLM.from_pretrained(run.path / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run.path / "adapter").eval()
    assert {layer.lora_A["default"].weight.dtype for layer in lora_layers(adapted).values()} == {torch.float32}
    (probe,) = run.result["probes"]
    with torch.no_grad():
        now = adapted(torch.tensor([probe["input_ids"]])).logits[0, -1].log_softmax(-1)
        with adapted.disable_adapter():
            before = adapted(torch.tensor([probe["input_ids"]])).logits[0, -1].log_softmax(-1)
    assert probe["first"]["adapter"] == pytest.approx(now[probe["first"]["tokens"]].tolist(), abs=1e-4)
    assert probe["first"]["base"] == pytest.approx(before[probe["first"]["tokens"]].tolist(), abs=1e-4)

    processor("bfloat16")
    in_bf16 = directory("bf16")
    assert in_bf16.run() == 0
    here, there = run.result["evaluation"], in_bf16.result["evaluation"]
    assert here["rows_digest"] == there["rows_digest"] and here["base_loss"] != there["base_loss"]
    other = directory("other", held_out=make_rows(4, seed=5, packed=1))
    assert other.run() == 0
    assert other.result["evaluation"]["rows_digest"] != here["rows_digest"]

    processor("float32")
    in_fp32 = directory("asked", training={"bf16": False})
    assert in_fp32.run() == 0
    assert in_fp32.result["loss_history"] == run.result["loss_history"]


@pytest.mark.parametrize("began, here", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_run_that_resumes_on_another_processor_goes_on_in_its_own_type(directory, processor, began, here):
    processor(began)
    whole = directory("whole")
    assert whole.run() == 0
    (checkpoint, *_) = sorted((whole.path / "checkpoints").glob("step-*"))
    assert json.loads((checkpoint / "checkpoint.json").read_text())["compute_type"] == began

    processor(here)
    resumed = directory("resumed")
    shutil.copytree(checkpoint, resumed.path / "resume")
    assert resumed.run() == 0
    assert resumed.result["environment"]["compute_type"] == began
    assert resumed.result["loss_history"] == whole.result["loss_history"]
    assert resumed.result["adapter"] == whole.result["adapter"]
    assert resumed.result["probes"] == whole.result["probes"]


def test_a_checkpoint_of_before_goes_on_in_bf16(directory, processor):
    processor("bfloat16")
    whole = directory("whole")
    assert whole.run() == 0
    (checkpoint, *_) = sorted((whole.path / "checkpoints").glob("step-*"))
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    del manifest["compute_type"]
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))

    processor("float32")
    resumed = directory("resumed")
    shutil.copytree(checkpoint, resumed.path / "resume")
    assert resumed.run() == 0
    assert resumed.result["adapter"] == whole.result["adapter"]
