"""PiSSA and OLoRA: trained on a changed base, published as a plain LoRA on the base as it is served, exactly."""

import json
import os
import signal
from typing import Any
from unittest.mock import patch

import canonicalise
import compute
import loop
import pytest
import torch
from changed_base import ChangedBase
from conftest import Directory
from peft import LoraConfig, PeftModel, get_peft_model
from spec import TABLES
from train import CHANGES_THE_BASE
from transformers import AutoModelForCausalLM

KINDS = ["pissa", "pissa_niter_4", "olora"]
TOKENS = torch.arange(3, 40)[None]


def base_of(path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_published_is_what_peft_trained(tiny_base, kind, rslora):
    """PEFT's own model of this kind, with weights that training moved, against the base with the published tensors, in float32."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"r": 4, "lora_alpha": 8, "use_rslora": rslora, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    ours = get_peft_model(base_of(tiny_base), LoraConfig(**config))
    changed = ChangedBase(ours, kind, None, lambda: None)
    torch.manual_seed(0)
    theirs = get_peft_model(base_of(tiny_base), LoraConfig(**config, init_lora_weights=kind))
    if not kind.startswith("pissa_niter"):  # that draws random numbers, and PEFT drew others before
        changed.begin()
        assert torch.allclose(ours(TOKENS).logits, theirs(TOKENS).logits, atol=1e-4)
        changed.end()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in canonicalise.lora_layers(ours).values():
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)["default"].weight
                weight += 0.01 * torch.randn(weight.shape, generator=generator)
    changed.begin()
    with torch.no_grad():
        trained = ours(TOKENS).logits
        changed.end()
        with ours.disable_adapter():
            assert torch.equal(ours(TOKENS).logits, base_of(tiny_base)(TOKENS).logits)
        for name, layer in canonicalise.lora_layers(ours).items():
            a, b = changed.learned(name, *(canonicalise.weight_of(part["default"]) for part in (layer.lora_A, layer.lora_B)))
            assert a.shape[0] == 8
            layer.lora_A["default"].weight, layer.lora_B["default"].weight = torch.nn.Parameter(a), torch.nn.Parameter(b)
        assert torch.allclose(ours(TOKENS).logits, trained, atol=2e-4)
        assert (trained - base_of(tiny_base)(TOKENS).logits).abs().max() > 0.05


@pytest.fixture(params=KINDS)
def run_of(directory, request):
    def make(name: str, **training) -> Directory:
        training = {"bf16": False, "learning_rate": 2e-3} | training
        return directory(name, lora={"init_lora_weights": request.param, "lora_dropout": 0.0, "r": 4, "lora_alpha": 4}, training=training)

    return make


def test_a_run_learns_and_publishes_a_plain_adapter_of_twice_the_rank(run_of, tiny_base):
    run = run_of("run")
    assert run.run() == 0
    result = run.result
    assert result["evaluation"]["adapter_loss"] < result["evaluation"]["base_loss"]
    assert result["loss_history"][0][1] > result["loss_history"][-1][1]
    config = json.loads((run.path / "adapter/adapter_config.json").read_text())
    assert (result["adapter"]["rank"], config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 8, 8, True)
    # What anybody gets who puts it on the base that is served.
    served = PeftModel.from_pretrained(base_of(tiny_base, getattr(torch, compute.native_type())), str(run.path / "adapter"), autocast_adapter_dtype=False)
    probe = result["probes"][0]
    logprobs = served(torch.tensor([probe["input_ids"]])).logits[0, -1].float().log_softmax(-1)
    assert logprobs[probe["first"]["tokens"]].tolist() == pytest.approx(probe["first"]["adapter"], abs=0.1)
    assert abs(torch.tensor(probe["first"]["adapter"]) - torch.tensor(probe["first"]["base"])).max() > 0.1


def test_it_is_known_on_which_base_things_were_measured(run_of, directory):
    """The base's own numbers are those of a run that changes nothing."""
    run, plain = run_of("run"), directory("plain", training={"bf16": False})
    assert run.run() == plain.run() == 0
    assert run.result["evaluation"]["base_loss"] == plain.result["evaluation"]["base_loss"]
    assert run.result["probes"][0]["base"] == plain.result["probes"][0]["base"]
    assert run.result["probes"][0]["first"]["base"] is not None


def test_killed_it_goes_on_to_the_same_bytes(run_of):
    whole, killed = run_of("whole"), run_of("killed")
    assert whole.run() == 0

    def die_at_step_eight():
        step_end = loop.Reporter.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:  # checkpoints are of steps 3 and 6
                os.kill(os.getpid(), signal.SIGKILL)
            return step_end(self, args, state, control, **kwargs)

        patch.object(loop.Reporter, "on_step_end", on_step_end).start()

    killed.run_and_die(die_at_step_eight)
    assert killed.run() == 0
    assert killed.result["adapter"] == whole.result["adapter"]
    assert killed.result["loss_history"] == whole.result["loss_history"]


def test_they_are_the_ones_that_the_services_accept():
    accepted = next(one["enum"] for one in TABLES["lora"]["fields"]["init_lora_weights"]["anyOf"] if "enum" in one)
    assert set(accepted) == {"gaussian", "orthogonal", *CHANGES_THE_BASE}


def test_what_does_not_go_with_it_is_refused(directory):
    lora = {"init_lora_weights": "pissa"}
    run = directory("dpo", lora=lora, method={"type": "dpo"})
    assert run.run() == 1
    assert (run.result["error"]["code"], run.result["error"]["param"]) == ("SPEC_INVALID", "lora.init_lora_weights")


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_packing_is_proven_on_the_model_that_is_trained(directory, kind):
    """Not on one to which a part of the base was added a second time: its losses are huge, and so is what rounding makes of them."""
    import packing

    losses = []

    def spy(model, rows, *_, **__):
        losses.append(packing.evaluate(model, rows.sequences())[0])

    run = directory(lora={"init_lora_weights": kind, "lora_dropout": 0.0}, training={"max_steps": 1, "per_device_train_batch_size": 12, "bf16": False})
    with patch.object(packing, "prove_packing", spy):
        assert run.run() == 0
    assert losses == [pytest.approx(run.result["loss_history"][0][1], rel=1e-4)]


def test_a_run_that_goes_on_begins_with_the_same_part_of_the_base(tiny_base, tmp_path):
    """So that packing is proven on the model that is trained, before the checkpoint's adapter is loaded."""
    config: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    ChangedBase(get_peft_model(base_of(tiny_base), LoraConfig(**config)), "olora", None, lambda: None).save(tmp_path)
    model = get_peft_model(base_of(tiny_base), LoraConfig(**config))
    with ChangedBase(model, "olora", tmp_path, lambda: None).in_training(), torch.no_grad():
        assert torch.allclose(model(TOKENS).logits, base_of(tiny_base)(TOKENS).logits, atol=1e-4)
