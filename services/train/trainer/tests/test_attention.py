"""Bases with sliding windows, soft caps and sinks are trained with their own attention, and the self-test would notice another one."""

from typing import Any

import attention
import packing
import pytest
import torch
from conftest import VOCABULARY, make_rows, write_shard
from peft import LoraConfig, get_peft_model
from spec import TrainerError
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GptOssConfig, MistralConfig, PreTrainedConfig, Qwen3Config

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 2,
    "initializer_range": 0.4,
}
WINDOW: dict[str, Any] = {"sliding_window": 5}
# Name to its config, and which of its arguments attention must not leave out.
BASES: dict[str, tuple[PreTrainedConfig, list[str]]] = {
    "Mistral": (MistralConfig(**SMALL, **WINDOW), ["sliding_window"]),
    "Qwen3": (Qwen3Config(**SMALL, **WINDOW, use_sliding_window=True, max_window_layers=1), ["sliding_window"]),
    "Gemma 2": (Gemma2Config(**SMALL, **WINDOW, attn_logit_softcapping=0.5, query_pre_attn_scalar=8), ["sliding_window", "softcap"]),
    "Gemma 3": (Gemma3TextConfig(**SMALL, **WINDOW, layer_types=["sliding_attention", "full_attention"]), ["sliding_window"]),
    "gpt-oss": (GptOssConfig(**SMALL, **WINDOW, num_local_experts=2, num_experts_per_tok=1), ["sliding_window", "s_aux"]),
}


@pytest.fixture
def rows(tmp_path):
    write_shard(tmp_path / "train-00000.arrow", make_rows(6, seed=1, prompt=12))
    return packing.Rows(tmp_path, "train", VOCABULARY)


def made(config: PreTrainedConfig):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)
    for name, parameter in base.named_parameters():
        if "sinks" in name:  # drawn near 0 they would take the same share everywhere
            torch.nn.init.normal_(parameter, std=2)
    return get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("name", BASES)
def test_packed_losses_equal_those_of_the_bases_own_attention(name, rows):
    config, _ = BASES[name]
    packing.prove_packing(made(config), rows, 2, max_rows=6, max_tokens=10_000)


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name, (_, arguments) in BASES.items() for argument in arguments])
def test_the_self_test_notices_what_attention_leaves_out(name, argument, rows):
    def forgetful(*arguments: Any, **options: Any):
        options[argument] = None
        return attention.attend_by_sequence(*arguments, **options)

    attention.AttentionInterface.register(attention.NAME, forgetful)
    try:
        with pytest.raises(TrainerError, match="attention is not this base's"):
            packing.prove_packing(made(BASES[name][0]), rows, 2, max_rows=6, max_tokens=10_000)
    finally:
        attention.AttentionInterface.register(attention.NAME, attention.attend_by_sequence)


@pytest.mark.parametrize(("options", "words"), [({"position_bias": torch.ones(1)}, "position_bias"), ({"is_causal": False}, "later tokens")])
def test_what_this_trainer_does_not_have_is_refused_by_name(options, words):
    states = torch.randn(1, 2, 3, 8)
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(TrainerError, match=words) as caught:
        attention.attend_by_sequence(torch.nn.Identity(), states, states, states, None, cu_seq_lens_q=bounds, **options)
    assert caught.value.code == "ATTENTION_UNSUPPORTED"


def test_gradients_of_plain_attention_are_those_of_torchs():
    query, key, value = given = [torch.randn(1, heads, 9, 8, requires_grad=True) for heads in (4, 2, 2)]
    mask = attention.mask_of(9, None, "cpu")
    plain = attention.attend_plainly(query, key, value, mask, 8**-0.5, 0.0, None, None)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert torch.allclose(plain, theirs, atol=1e-5)
    for ours, other in zip(torch.autograd.grad(plain.sum(), given), torch.autograd.grad(theirs.sum(), given), strict=True):
        assert torch.allclose(ours, other, atol=1e-5)


def test_a_kernel_that_does_not_run_here_is_not_used():
    """There is none for a processor; on a GPU the same question decides."""
    assert not attention.varlen_works(torch.device("cpu"), torch.bfloat16, 4, 2, 64)
    assert not attention.varlen_works(torch.device("cpu"), torch.float32, 4, 2, 64)
