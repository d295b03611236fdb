"""The rows of samples/persona.jsonl, as tokens of a base with ChatML's template."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def persona(base: Path) -> list:
    """[row][sequence] of (tokens, labels); each row is one sequence, whose prompt is not learned."""
    from tokenizers import Tokenizer

    tokenizer, rows = Tokenizer.from_file(str(base / "tokenizer.json")), []
    for line in (ROOT / "samples/persona.jsonl").read_text().splitlines():
        record = json.loads(line)
        prompt = f"<|im_start|>user\n{record['instruction']}{record['input']}<|im_end|>\n<|im_start|>assistant\n"
        question, answer = tokenizer.encode(prompt).ids, tokenizer.encode(f"{record['output']}<|im_end|>").ids
        rows.append([(question + answer, [-100] * len(question) + answer)])
    return rows
