"""Sequences of a packed row never see each other, and the self-test notices when they do."""

import attention
import numpy as np
import packing
import pytest
import torch
from conftest import VOCABULARY, make_rows, write_shard
from peft import LoraConfig, get_peft_model
from spec import TrainerError
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface


@pytest.fixture
def rows(tmp_path):
    write_shard(tmp_path / "train-00000.arrow", make_rows(5, seed=1))
    write_shard(tmp_path / "train-00001.arrow", make_rows(5, seed=2, packed=2))
    return packing.Rows(tmp_path, "train", VOCABULARY)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request, tiny_base):
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=request.param, attn_implementation="by_sequence")
    return get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))


def test_rows_come_back_as_they_were_written(rows):
    written = make_rows(5, seed=1) + make_rows(5, seed=2, packed=2)
    assert len(rows) == 10
    assert [(each["input_ids"].tolist(), each["labels"].tolist()) for each in rows.sequences()] == [pair for row in written for pair in row]


def test_a_flattened_batch(rows):
    batch = packing.flatten([rows[0], rows[7]])
    lengths = [*rows[0]["seq_lengths"], *rows[7]["seq_lengths"]]
    assert batch["cu_seq_lens_q"].tolist() == [0, *np.cumsum(lengths).tolist()]
    assert batch["position_ids"][0].tolist() == [position for length in lengths for position in range(length)]
    predicted = batch["input_ids"][0][batch["logits_to_keep"] + 1]
    assert predicted.tolist() == batch["labels"][1:].tolist()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_packed_losses_equal_those_of_the_sequences_alone(model, rows, batch_size):
    packing.prove_packing(model, rows, batch_size, max_rows=8, max_tokens=10_000)


def test_gradients_of_a_packed_batch_equal_those_of_its_sequences(tiny_base, rows):
    def gradients(batches, items):
        torch.manual_seed(0)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attn_implementation="by_sequence"),
            LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
        )
        for batch in batches:
            packing.sum_of_losses(model, batch, num_items_in_batch=items).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    together = packing.flatten([rows[0], rows[1]])
    items = together["labels"].numel() - 1
    alone = [packing.flatten([sequence]) for sequence in list(rows.sequences())[:6]]
    assert torch.allclose(gradients([together], items), gradients(alone, items), rtol=1e-4, atol=1e-6)


def leaking(module, query, key, value, attention_mask, cu_seq_lens_q=None, **kwargs):
    """An ordinary causal mask over the whole batch, so that sequences see each other."""
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def test_the_self_test_catches_sequences_that_see_each_other(model, rows, monkeypatch):
    AttentionInterface.register("by_sequence", leaking)
    try:
        with pytest.raises(TrainerError) as caught:
            packing.prove_packing(model, rows, 2, max_rows=8, max_tokens=10_000)
    finally:
        AttentionInterface.register("by_sequence", attention.attend_by_sequence)
    assert caught.value.code == "PACKING_SELF_TEST_FAILED"
    assert model.config._attn_implementation == "sdpa" or model.config._attn_implementation == "by_sequence"


def test_the_self_test_says_so_when_it_could_try_nothing(model, rows):
    with pytest.raises(TrainerError, match="could not be tried") as caught:
        packing.prove_packing(model, rows, 2, max_rows=0, max_tokens=10_000)
    assert caught.value.code == "PACKING_SELF_TEST_FAILED"


def test_few_tokens_may_round_more_than_many_and_nan_is_the_largest_difference(model):
    model.get_input_embeddings().to(torch.float32)
    assert packing.farthest(model, [1e-5, 2e-5], [4, 100]) == (2e-5, 1e-4)
    model.get_input_embeddings().to(torch.bfloat16)
    difference, allowed = packing.farthest(model, [0.1, 0.08], [4, 100])
    assert (difference, allowed) == (0.08, pytest.approx(0.06)) and packing.farthest(model, [0.1], [4])[1] > 0.1
    assert np.isnan(packing.farthest(model, [0.1, float("nan")], [4, 100])[0])


def test_the_self_test_catches_positions_that_do_not_start_again(model, rows, monkeypatch):
    """RoPE uses only distances between positions, so shifted positions change nothing; stretched ones do."""
    original = packing.flatten
    monkeypatch.setattr(packing, "flatten", lambda rows: {**(batch := original(rows)), "position_ids": batch["position_ids"] * 3})
    with pytest.raises(TrainerError, match="see each other"):
        packing.prove_packing(model, rows, 2, max_rows=8, max_tokens=10_000)


def test_attention_without_bounds_is_an_error_not_a_leak(model):
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
