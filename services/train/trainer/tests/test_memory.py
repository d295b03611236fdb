"""The reckoned memory is that of real tensors, counted on small models; and the table in docs/bases.md is what is reckoned."""

from pathlib import Path
from typing import Any

import attention
import head
import memory
import numpy as np
import packing
import pytest
import quantised
import torch
import train
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[4]
SMALL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 64}
WIDE: dict[str, Any] = SMALL | {"hidden_size": 256, "intermediate_size": 448, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
# As in docs/bases.md. Sizes of Qwen2.5-7B and Llama-3.1-70B.
BASES = {
    "7B": memory.Sizes(layers=28, hidden=3584, intermediate=18944, queries=3584, keys=512, vocabulary=152_064, tied=False),
    "70B": memory.Sizes(layers=80, hidden=8192, intermediate=28672, queries=8192, keys=1024, vocabulary=128_256, tied=False),
}
RANK, TOKENS = 16, 4096


@pytest.fixture(params=[SMALL, WIDE], ids=["small", "wide"])
def config(request) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=3, tie_word_embeddings=True, **request.param)


def sizes_of(config) -> memory.Sizes:
    sizes = memory.sizes_of(config.to_dict())
    assert sizes is not None
    return sizes


def adapted(model, dropout=0.0):
    attention.use(model, attention.NAME)
    return train.add_lora(model, train.LORA_DEFAULTS | {"r": RANK, "lora_dropout": dropout, "target_modules": "all-linear"}, 0).train()


@pytest.mark.parametrize("quantization", memory.HELD)
def test_weights(config, quantization, tmp_path):
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    model = train.read_base(tmp_path, "bfloat16", quantization=quantization)
    held = sum(parameter.nbytes for parameter in model.parameters())
    held += sum(part.nbytes for layer in quantised.layers_of(model).values() for part in layer.parts.values())
    assert memory.base_bytes(sizes_of(config), quantization) == pytest.approx(held, rel=1e-3)


def test_adapter_gradients_and_optimizer(config):
    model = adapted(LlamaForCausalLM(config))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    averages = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    counted = sum(parameter.nbytes + (0 if parameter.grad is None else parameter.grad.nbytes) for parameter in trained) + averages
    assert counted == 16 * memory.adapter_parameters(sizes_of(config), RANK)


@pytest.mark.parametrize("checkpointing, dropout", [(False, 0.0), (False, 0.1), (True, 0.0)])
def test_activations(config, checkpointing, dropout):
    """Of everything that autograd keeps, each memory once; of 1,024 tokens, so that what does not grow with them is little."""
    tokens, sizes = 1024, sizes_of(config)
    model = adapted(LlamaForCausalLM._from_config(config, attn_implementation="by_sequence").to(torch.bfloat16), dropout)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = np.arange(tokens // 2, dtype=np.int32) % 64
    labels = np.where(np.arange(tokens // 2) < tokens // 2 - 4, -100, ids).astype(np.int32)
    row = {"input_ids": ids, "labels": labels, "seq_lengths": np.array([tokens // 2])}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # keeps it, so that its memory is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        packing.sum_of_losses(model, packing.flatten([row, row]), 8)
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    expected = memory.activation_bytes(sizes, RANK, tokens, checkpointing, dropout > 0)
    if checkpointing:  # the one layer whose activations are there at a time is not yet, before the backward pass
        expected -= memory.activation_bytes(sizes, RANK, tokens, False) / sizes.layers - tokens * 4 * sizes.hidden / sizes.layers
    assert counted == pytest.approx(expected, rel=0.08)


def test_logits_are_held_as_reckoned():
    assert memory.LOGITS_AT_ONCE == head.LOGITS_AT_ONCE
    assert (quantised.BLOCK, memory.BLOCK) == (64, 64)


def test_who_runs_out_of_memory_reads_what_it_takes(directory, monkeypatch):
    import loop

    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    run = directory()
    monkeypatch.setattr(loop.LoraTrainer, "training_step", step)
    assert run.run() == 1
    error = run.result["error"]
    assert error["code"] == "OUT_OF_MEMORY"
    assert "gradient_checkpointing" in error["message"] and "GB with nf4" in error["message"]


def table() -> list[str]:
    def gb(size: float) -> str:
        return f"{size / memory.GB:.1f}"

    lines = []
    for name, sizes in BASES.items():
        for held in memory.HELD:
            totals = [
                gb(memory.training_bytes(sizes, rank=RANK, tokens=TOKENS, quantization=held, checkpointing=checkpointing)) for checkpointing in (False, True)
            ]
            adapter = gb(16 * memory.adapter_parameters(sizes, RANK))
            lines.append(f"| {name}, {held or 'bf16'} | {gb(memory.base_bytes(sizes, held))} | {adapter} | {totals[0]} | {totals[1]} |")
    return lines


def test_the_table_in_the_docs_is_what_is_reckoned():
    docs = (ROOT / "docs/bases.md").read_text(encoding="utf-8")
    assert [line for line in docs.splitlines() if line.startswith(("| 7B,", "| 70B,"))] == table()
