"""Bases that are packed into 4 bits: trained on as what they stand for, and probed with the weights that will serve."""

import json
import os
import runpy
from pathlib import Path

import compute
import pytest
import torch
import unpack

ROOT = Path(__file__).resolve().parents[4]
NATIVE = getattr(torch, compute.native_type())  # what a run computes in here
quantise = runpy.run_path(str(ROOT / "packages/testkit/quantise.py"))["main"]


@pytest.fixture(scope="module", params=["gptq", "awq"])
def packed(request, tiny_base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    quantise(tiny_base, out, request.param, group=16)
    return out


def loaded(base: Path, dtype=NATIVE):
    import packing  # noqa: F401  registers the attention

    packed = unpack.packing_of(base)
    assert packed is not None
    return unpack.load(base, packed, dtype, attn_implementation="sdpa").eval()


def first_logprobs(model, probe: dict) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([probe["input_ids"]])).logits[0, -1].float().log_softmax(-1)[probe["first"]["tokens"]]


def assert_recorded(probes: list[dict], base, adapted) -> None:
    for probe in probes:
        for said, model in (("base", base), ("adapter", adapted)):
            torch.testing.assert_close(torch.tensor(probe["first"][said]), first_logprobs(model, probe), atol=0.05, rtol=0.02)


def test_packed_weights_are_the_originals_to_half_a_step(packed, tiny_base):
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model = loaded(packed, torch.bfloat16)
    for (name, weight), (_, expected) in zip(model.named_parameters(), original.named_parameters(), strict=True):
        if not name.endswith("_proj.weight"):
            assert torch.equal(weight, expected), name
            continue
        groups = expected.float().reshape(len(expected), -1, 16)
        widest = (groups.amax(-1) - groups.amin(-1)).max() / 14
        assert 0 < (weight.float() - expected.float()).abs().max() < widest, name


def test_trains_on_a_packed_base_as_on_the_weights_that_it_stands_for(directory, packed, tmp_path):
    from peft import PeftModel

    run = directory(base=packed)
    assert run.run() == 0
    full = tmp_path / "full"
    loaded(packed).save_pretrained(full)
    same = directory("same", base=full)
    assert same.run() == 0
    assert run.result["train_loss"] == pytest.approx(same.result["train_loss"], abs=1e-4)
    assert [file["sha256"] for file in run.result["adapter"]["files"]] == [file["sha256"] for file in same.result["adapter"]["files"]]
    assert_recorded(run.result["probes"], loaded(packed), PeftModel.from_pretrained(loaded(packed), run.path / "adapter").eval())
    assert run.result["twins"] == []


def test_probes_are_recorded_with_the_weights_of_each_twin(directory, packed, tiny_base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = directory()
    digest = "sha256:" + "7" * 64
    for path in ("twin-0", "twin-1", "twin-2"):
        os.symlink(tiny_base if path == "twin-1" else packed, run.path / path)
    # The second is not packed, so the trainer cannot unpack it.
    run.spec["twins"] = [{"path": path, "digest": digest} for path in ("twin-0", "twin-1", "twin-2")]
    (run.path / "spec.json").write_text(json.dumps(run.spec))
    assert run.run() == 0
    first, second = run.result["twins"]
    assert first["base"] == second["base"] == digest
    assert first == second
    assert_recorded(first["probes"], loaded(packed), PeftModel.from_pretrained(loaded(packed), run.path / "adapter").eval())
    original, other = (AutoModelForCausalLM.from_pretrained(tiny_base, dtype=NATIVE).eval() for _ in range(2))
    assert_recorded(run.result["probes"], original, PeftModel.from_pretrained(other, run.path / "adapter").eval())
    assert first["probes"][0]["first"] != run.result["probes"][0]["first"]
