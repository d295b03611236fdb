"""The head in chunks: the same losses and gradients as the head as a whole, in memory that does not grow with the tokens."""

import subprocess
import sys
from typing import Any

import head
import numpy as np
import packing
import pytest
import torch
from conftest import ENVIRONMENT, TRAINER, make_pairs, make_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM


def peft_model(base, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="by_sequence")
    return get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))


def batch_of(rows) -> dict:
    sequences = [sequence for row in rows for sequence in row]
    return packing.flatten([{"input_ids": np.array(ids), "labels": np.array(labels), "seq_lengths": np.array([len(ids)])} for ids, labels in sequences])


@pytest.fixture
def tokens_at_once(monkeypatch):
    """Makes chunks of so many tokens of the tiny base."""
    return lambda tokens: monkeypatch.setattr(head, "LOGITS_AT_ONCE", tokens * 64)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_and_gradients_are_those_of_the_whole_head(tiny_base, tokens_at_once, smoothing, autocast):
    batch = batch_of(make_rows(4, seed=3))

    def loss_and_gradients() -> tuple[float, torch.Tensor]:
        model = peft_model(tiny_base)
        assert head.prove_head(model, *packing.inputs_of(model, batch_of(make_rows(1, seed=9))))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = packing.sum_of_losses(model, batch, 10, smoothing)
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    whole, expected = loss_and_gradients()
    tokens_at_once(7)
    loss, gradients = loss_and_gradients()
    assert loss == pytest.approx(whole, rel=1e-6)
    tolerance = 2e-2 if autocast else 1e-6
    assert torch.allclose(gradients, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_a_base_that_does_more_to_its_logits_stays_whole(tiny_base, tokens_at_once):
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=0.05))
    capped.set_attn_implementation("by_sequence")
    batch = batch_of(make_rows(2, seed=3))
    expected = packing.sum_of_losses(capped, batch).item()
    assert not head.prove_head(capped, *packing.inputs_of(capped, batch))
    tokens_at_once(3)
    assert packing.sum_of_losses(capped, batch).item() == expected


@pytest.mark.parametrize("method", [None, {"type": "dpo"}, {"type": "orpo"}])
def test_a_run_in_chunks_is_a_run(directory, tokens_at_once, method):
    def run(name):
        rows = None if method is None else make_pairs(6, seed=1)
        held_out = None if method is None else make_pairs(2, seed=2)
        made = directory(name, rows=rows, held_out=held_out, method=method, training={"bf16": False, "max_steps": 5}, lora={"lora_dropout": 0.0})
        assert made.run() == 0
        return made.result

    whole = run("whole")
    tokens_at_once(5)
    chunked = run("chunked")
    assert [loss for _, loss in chunked["loss_history"]] == pytest.approx([loss for _, loss in whole["loss_history"]], rel=2e-3)
    assert chunked["evaluation"]["adapter_loss"] == pytest.approx(whole["evaluation"]["adapter_loss"], rel=2e-3)


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import head, torch
from torch.nn.functional import cross_entropy
from types import SimpleNamespace

tokens, width, vocabulary = int(sys.argv[2]), 8, 50_000
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    def get_output_embeddings(self):
        return self.head
    def forward(self, hidden):
        return SimpleNamespace(logits=self.head(hidden)[None])
model = Model()
model.head.is_all = True
hidden = torch.randn(tokens, width, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = torch.zeros(tokens, dtype=torch.long)
sum(loss for (loss,) in head.of_logits(model, {"hidden": hidden}, labels, lambda logits, labels: (cross_entropy(logits, labels, reduction="sum"),))).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_tokens():
    def kilobytes(tokens: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(TRAINER), str(tokens)]
        return int(subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, text=True).stdout)

    # The logits of 12,000 tokens alone would take 2.4 GB, those of 3,000 0.6 GB.
    assert kilobytes(12_000) < kilobytes(3_000) * 1.2 + 100_000
