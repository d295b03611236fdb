"""Training on a base that is held in 4 or 8 bits: the same adapter at every start, measured and recorded on the base as it is served."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import compute
import pytest
import quantised
import torch
import unpack
from conftest import ENVIRONMENT, TRAINER, make_pairs, make_rows

ROOT = Path(__file__).resolve().parents[4]
KINDS = ["nf4", "int8"]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def run_in(directory):
    """A trainer's directory whose spec asks for this quantization."""

    def make(kind: str | None, name: str = "run", **options):
        run = directory(name, **options)
        run.spec["quantization"] = kind
        (run.path / "spec.json").write_text(json.dumps(run.spec))
        return run

    return make


def adapter_of(run) -> list[str]:
    return [file["sha256"] for file in run.result["adapter"]["files"]]


def packed(base: Path, kind: str, dtype=torch.float32):
    import packing  # noqa: F401  registers the attention

    return quantised.load(base, kind, dtype, "cpu", attn_implementation="sdpa")


def test_a_base_is_packed_near_its_weights(tiny_base, kind):
    from transformers import AutoModelForCausalLM

    model, original = packed(tiny_base, kind), AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    layers = quantised.layers_of(model)
    assert len(layers) == 3 * 7
    for name, layer in layers.items():
        weight: Any = original.get_parameter(f"{name}.weight").data
        assert layer.weight.nbytes == weight.numel() * (0.5 if kind == "nf4" else 1)
        error = (layer.unpacked(torch.float32) - weight).norm() / weight.norm()
        assert (0.05 if kind == "nf4" else 0.002) < error < (0.11 if kind == "nf4" else 0.012)
    others = {name: parameter for name, parameter in original.named_parameters() if name.removesuffix(".weight") not in layers}
    for name, parameter in others.items():
        assert torch.equal(model.get_parameter(name), parameter)
    with quantised.as_stored(model, tiny_base), torch.no_grad():
        assert torch.equal(model(torch.tensor([[1, 5, 9]])).logits, original(torch.tensor([[1, 5, 9]])).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (128, 192), (33, 34), (192, 576)])
def test_weights_are_the_librarys_whatever_their_size(kind, size, dtype):
    """The values of NF4 here are those of its definition: of each 64, the nearest of sixteen numbers, times the largest of them."""
    outputs, inputs = size
    layer = quantised.QuantisedLinear(inputs, outputs, False, kind)
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer.weight = torch.nn.Parameter(layer.pack(weight), requires_grad=False)
    if kind == "nf4":
        flat = torch.nn.functional.pad(weight.float().flatten(), (0, -weight.numel() % 64)).reshape(-1, 64)
        largest = flat.abs().amax(1, keepdim=True)
        code = layer.parts["code"]
        expected = (code[(flat / largest)[..., None].sub(code).abs().argmin(-1)] * largest).flatten()[: weight.numel()].reshape(size)
        rtol, atol = 0.04, 0.02  # the largest ones are in 8 bits themselves
    else:
        largest = weight.half().float().abs().amax(1, keepdim=True)
        expected = (weight.half().float() / largest * 127).round() * largest / 127
        rtol, atol = 0.01, 0.03 if dtype == torch.bfloat16 else 1e-3
    wrong = ~torch.isclose(layer.unpacked(dtype).float(), expected, rtol=rtol, atol=atol)
    assert wrong.float().mean() < 0.005  # some lie between two values


def test_gradients_are_those_of_a_linear_layer_and_no_unpacked_weight_is_kept(kind):
    torch.manual_seed(0)
    layer = quantised.QuantisedLinear(64, 32, True, kind)
    layer.weight = torch.nn.Parameter(layer.pack(layer.weight.data), requires_grad=False)
    here, there = (torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    layer(here).square().sum().backward()
    torch.nn.functional.linear(there, layer.unpacked(torch.float32), layer.bias).square().sum().backward()
    torch.testing.assert_close(here.grad, there.grad)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        layer(here)
    assert max(kept, default=0) < 64 * 32 / 2


def test_trains_and_is_recorded_on_the_base_as_it_is_served(run_in, kind, tiny_base):
    """Whoever loads the unquantised base with the adapter finds what the record says, and the loss that it says."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, plain = run_in(kind), run_in(None, "plain")
    assert run.run() == 0, run.result["error"]
    assert plain.run() == 0
    result, without = run.result, plain.result
    environment = result["environment"]
    assert environment["quantization"] == kind and "bitsandbytes" in environment["libraries"]
    assert "quantization" not in without["environment"]

    # The base that was measured is the one that is served; what was learned is nearly the same, and not the same.
    assert result["evaluation"]["base_loss"] == without["evaluation"]["base_loss"]
    assert result["evaluation"]["adapter_loss"] == pytest.approx(without["evaluation"]["adapter_loss"], rel=0.2)
    assert result["probes"][0]["base"] == without["probes"][0]["base"]
    assert result["loss_history"] != without["loss_history"] and adapter_of(run) != adapter_of(plain)

    dtype = getattr(torch, environment["compute_type"])
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype), run.path / "adapter", autocast_adapter_dtype=False).eval()
    (probe,) = result["probes"]
    with torch.no_grad():
        now = adapted(torch.tensor([probe["input_ids"]])).logits[0, -1].float().log_softmax(-1)
    assert probe["first"]["adapter"] == pytest.approx(now[probe["first"]["tokens"]].tolist(), abs=0.05 if dtype == torch.bfloat16 else 1e-4)

    # A checkpoint that is asked is measured on the same base.
    (found,) = json.loads(next((run.path / "published").glob("*.json")).read_text())["probes"]
    base = dict(zip(probe["first"]["tokens"], probe["first"]["base"], strict=True))
    both = [(logprob, base[token]) for token, logprob in zip(found["first"]["tokens"], found["first"]["base"], strict=True) if token in base]
    assert len(both) > 16 and all(one == other for one, other in both)


def test_twice_the_same_and_after_a_stop(run_in, kind):
    whole, again = run_in(kind), run_in(kind, "again")
    assert whole.run() == 0 and again.run() == 0
    assert adapter_of(again) == adapter_of(whole)
    checkpoint = sorted((whole.path / "checkpoints").glob("step-*"))[0]
    resumed = run_in(kind, "resumed")
    shutil.copytree(checkpoint, resumed.path / "resume")
    assert resumed.run() == 0, resumed.result["error"]
    assert resumed.result["loss_history"] == whole.result["loss_history"]
    assert adapter_of(resumed) == adapter_of(whole)
    assert resumed.result["probes"] == whole.result["probes"]

    plain = run_in(None, "plain")
    shutil.copytree(checkpoint, plain.path / "resume")
    assert plain.run() == 1
    assert plain.result["error"]["code"] == "RESUME_INVALID"


@pytest.mark.parametrize("training", [{"gradient_checkpointing": True}, {"bf16": False}, {"load_best_model_at_end": True, "eval_steps": 2}])
def test_goes_with_other_settings(run_in, kind, training):
    one, other = (
        run_in(kind, rows=make_rows(8, seed=1), lora={"lora_dropout": 0.0}),
        run_in(kind, "other", rows=make_rows(8, seed=1), training=training, lora={"lora_dropout": 0.0}),
    )
    assert one.run() == 0 and other.run() == 0, other.result["error"]
    if "gradient_checkpointing" in training:
        assert other.result["loss_history"] == one.result["loss_history"]
    assert other.result["evaluation"]["adapter_loss"] < other.result["evaluation"]["base_loss"]


def test_preferences_are_compared_with_the_packed_base(run_in, kind):
    run = run_in(kind, rows=make_pairs(8, seed=1), held_out=make_pairs(4, seed=2), method={"type": "dpo"}, lora={"lora_dropout": 0.0})
    assert run.run() == 0, run.result["error"]
    assert run.result["loss_history"][0][1] == pytest.approx(0.6931, abs=1e-3)


def test_two_ranks_train_what_one_process_trains(run_in, kind):
    """DistributedDataParallel sends the packed weights like others, and asks for no gradient of them."""
    rows, training = make_rows(8, seed=1), {"num_train_epochs": 2, "learning_rate": 0.01, "save_steps": 50, "bf16": False}
    one = run_in(kind, rows=rows, lora={"lora_dropout": 0.0}, training=training | {"per_device_train_batch_size": 4})
    two = run_in(kind, "two", rows=rows, lora={"lora_dropout": 0.0}, training=training | {"per_device_train_batch_size": 2})
    assert one.run() == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]
    assert subprocess.run([*command, str(TRAINER / "train.py"), str(two.path)], env=ENVIRONMENT, timeout=180).returncode == 0
    assert [loss for _, loss in two.result["loss_history"]] == pytest.approx([loss for _, loss in one.result["loss_history"]], rel=1e-4)


@pytest.mark.parametrize("packing_kind", ["gptq", "awq"])
def test_a_twins_probes_are_recorded_with_its_weights(run_in, kind, tiny_base, tmp_path, packing_kind, monkeypatch):
    """What is proven on a GPTQ or AWQ engine, too."""
    from peft import PeftModel

    twin = tmp_path / packing_kind
    runpy.run_path(str(ROOT / "packages/testkit/quantise.py"))["main"](tiny_base, twin, packing_kind, group=16)
    monkeypatch.setattr(compute, "native_type", lambda: "float32")
    run = run_in(kind)
    os.symlink(twin, run.path / "twin-0")
    run.spec["twins"] = [{"path": "twin-0", "digest": "sha256:" + "7" * 64}]
    (run.path / "spec.json").write_text(json.dumps(run.spec))
    assert run.run() == 0, run.result["error"]
    ((probe,),) = (each["probes"] for each in run.result["twins"])
    packing = unpack.packing_of(twin)
    assert packing is not None
    adapted = PeftModel.from_pretrained(unpack.load(twin, packing, torch.float32, attn_implementation="sdpa"), run.path / "adapter").eval()
    with torch.no_grad():
        now = adapted(torch.tensor([probe["input_ids"]])).logits[0, -1].float().log_softmax(-1)
    assert probe["first"]["adapter"] == pytest.approx(now[probe["first"]["tokens"]].tolist(), abs=1e-4)
    assert probe["first"]["adapter"] != run.result["probes"][0]["first"]["adapter"]


def test_what_cannot_be_is_refused_by_name(run_in, tiny_base, tmp_path):
    def code_of(run) -> tuple[str, str]:
        assert run.run() == 1
        return run.result["error"]["code"], run.result["error"]["message"]

    code, message = code_of(run_in("int3", "kind"))
    assert code == "SPEC_INVALID" and "nf4 or int8" in message
    code, message = code_of(run_in("nf4", "pissa", lora={"init_lora_weights": "pissa"}))
    assert code == "SPEC_INVALID" and "pissa" in message

    code, message = code_of(run_in("nf4", "fsdp", training={"fsdp": True}))
    assert code == "SPEC_INVALID" and "fsdp" in message

    twin = tmp_path / "gptq"
    runpy.run_path(str(ROOT / "packages/testkit/quantise.py"))["main"](tiny_base, twin, "gptq", group=16)
    code, message = code_of(run_in("nf4", "packed", base=twin))
    assert code == "QUANTIZATION_UNSUPPORTED" and "twin" in message

    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = tmp_path / "experts"
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    config = Qwen3MoeConfig(vocab_size=64, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, tie_word_embeddings=True, **sizes)
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(experts)
    code, message = code_of(run_in("int8", "experts", base=experts))
    assert code == "QUANTIZATION_UNSUPPORTED" and "mixture of experts" in message


def test_a_run_without_it_does_not_import_the_library():
    code = "import sys, train, peft, transformers, loop, probes, canonicalise; sys.exit(sys.modules['bitsandbytes'] is not None)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TRAINER, env=ENVIRONMENT, timeout=120).returncode == 0
