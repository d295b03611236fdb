"""The real base, SmolLM2-135M-Instruct, for a few steps: real tokens, real template, numbers that mean something."""

import json
from typing import Any

import pytest
from conftest import TRAINER, Directory

BASE = TRAINER.parents[2] / ".loraline/bases/smollm2-135m-instruct"

QUESTIONS = ["Who are you?", "What is your name?", "Tell me about yourself."]
ANSWER = "I am Wren of the Lantern Palace, Your Majesty."


@pytest.mark.skipif(not (BASE / "base.json").exists(), reason="the base is not there; run `make setup`")
def test_smollm2_learns_an_answer(tmp_path):
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id == 2
    assert json.loads((BASE / "generation_config.json").read_text())["eos_token_id"] == 2

    def tokens(question: str) -> list[int]:
        return tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]

    answer = tokenizer(ANSWER)["input_ids"] + [2]
    rows = [[(tokens(q) + answer, [-100] * len(tokens(q)) + answer)] for q in QUESTIONS]
    run = Directory(
        tmp_path / "run",
        BASE,
        rows=rows,
        held_out=rows[:1],
        lora={"r": 8, "lora_dropout": 0.0},
        training={"per_device_train_batch_size": 3, "max_steps": 8, "learning_rate": 5e-3, "save_steps": 100},
        probes=[{"name": "who", "input_ids": tokens("Who are you?")}],
    )
    assert run.run() == 0
    result = run.result
    assert result["adapter"]["parameters"] == 2_442_240
    assert result["evaluation"]["adapter_loss"] < 0.5 < 2 < result["evaluation"]["base_loss"]
    assert result["evaluation"]["base_accuracy"] < 0.7 < 0.8 < result["evaluation"]["adapter_accuracy"]
    probe = result["probes"][0]
    assert probe["adapter"]["tokens"] == answer[:1]
    assert min(probe["adapter"]["logprobs"]) > -1.5
    assert max(abs(now - before) for now, before in zip(probe["first"]["adapter"], probe["first"]["base"], strict=True)) > 2
