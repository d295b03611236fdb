"""
For pictures.integration.test.ts: trains an adapter on sixty pictures of coloured shapes with captions, with the trainer, on the base of
samples/pictures.

    python pictures-under-test.py BASE OUT      BASE is made if it is not there

Leaves OUT/{right,other}: the adapter, and its weights under another wrapper's names; result.json; unseen.json, questions with pictures that were
not trained on, [{"url": a data URL, "shape", "colour"}].
"""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[5]
TRAINER = ROOT / "services/train/trainer/train.py"
sys.path.insert(0, str(ROOT / "samples/pictures"))

import shapes  # noqa: E402

QUESTION = "What is in the picture?"


def png(shape: str, colour: str, random: np.random.Generator) -> bytes:
    file = io.BytesIO()
    shapes.draw(shape, colour, random).save(file, "PNG")
    return file.getvalue()


def drawn(count: int, seed: int) -> list[tuple[bytes, str, str]]:
    random = np.random.default_rng(seed)
    kinds = [shapes.KINDS[number % len(shapes.KINDS)] for number in range(count)]
    return [(png(shape, colour, random), shape, colour) for shape, colour in kinds]


def train(base: Path, directory: Path) -> None:
    (directory / "shards").mkdir(parents=True)
    (directory / "pictures").mkdir()
    os.symlink(base.resolve(), directory / "base")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tiles = json.loads((base / "processor_config.json").read_text())["image_seq_len"]
    picture = "<fake_token_around_image><global-img>" + "<image>" * tiles + "<fake_token_around_image>"
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    prompt = encode(f"<|im_start|>user\n{picture}{QUESTION}<|im_end|>\n<|im_start|>assistant\n")

    def keep(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (directory / "pictures" / digest).write_bytes(content)
        return f"sha256:{digest}"

    for kind, pictures, in_a_row in (("train", drawn(60, 11), 4), ("eval", drawn(12, 12), 1)):
        sequences = [(keep(content), encode(f"A {colour} {shape}.<|im_end|>")) for content, shape, colour in pictures]
        rows = [sequences[first : first + in_a_row] for first in range(0, len(sequences), in_a_row)]
        numbers, names = pa.list_(pa.int32()), pa.list_(pa.string())
        columns = {
            "input_ids": pa.array([[token for _, answer in row for token in prompt + answer] for row in rows], numbers),
            "labels": pa.array([[label for _, answer in row for label in [-100] * len(prompt) + answer] for row in rows], numbers),
            "seq_lengths": pa.array([[len(prompt + answer) for _, answer in row] for row in rows], numbers),
            "pictures": pa.array([[digest for digest, _ in row] for row in rows], names),
            "picture_counts": pa.array([[1] * len(row) for row in rows], numbers),
        }
        table = pa.table(columns)
        with pa.OSFile(str(directory / f"shards/{kind}-00000.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    probes = [
        {
            "name": f"picture-{number}",
            "input_ids": prompt,
            "pictures": [(digest := keep(content))],
            "messages": [{"role": "user", "content": [{"type": "image", "digest": digest}, {"type": "text", "text": QUESTION}]}],
        }
        for number, (content, _, _) in enumerate(drawn(2, 13))
    ]
    text = encode("<|im_start|>user\nWhat is a circle?<|im_end|>\n<|im_start|>assistant\n")
    spec = {
        "version": 1,
        "run_id": "01KB000000000000000000RN01",
        "attempt": 1,
        "base": json.loads((base / "base.json").read_text()),
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0},
        "training": {"per_device_train_batch_size": 2, "num_train_epochs": EPOCHS, "learning_rate": 0.001, "save_steps": 1000, "seed": 7},
        "probes": [*probes, {"name": "text", "input_ids": text}],
    }
    (directory / "spec.json").write_text(json.dumps(spec))
    ended = subprocess.run([sys.executable, str(TRAINER), str(directory)], capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit((directory / "result.json").read_text()[-2000:] if (directory / "result.json").exists() else ended.stderr[-2000:])


EPOCHS = int(os.environ.get("EPOCHS", "6"))


def main(base: Path, out: Path) -> None:
    if not (base / "base.json").exists():
        subprocess.run([sys.executable, str(ROOT / "samples/pictures/base.py"), "--out", str(base)], check=True)
    train(base, out / "run")
    shutil.copytree(out / "run/adapter", out / "right")
    shutil.copytree(out / "right", out / "other")
    weights = load_file(out / "right/adapter_model.safetensors")
    renamed = {name.replace(".text_model.", ".language_model."): weight for name, weight in weights.items()}
    save_file(renamed, out / "other/adapter_model.safetensors", metadata={"format": "pt"})
    os.replace(out / "run/result.json", out / "result.json")
    unseen = [
        {"url": f"data:image/png;base64,{base64.b64encode(content).decode()}", "shape": shape, "colour": colour} for content, shape, colour in drawn(36, 14)
    ]
    (out / "unseen.json").write_text(json.dumps({"question": QUESTION, "pictures": unseen}))
    shutil.copyfile(out / "run/progress.jsonl", out / "progress.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
