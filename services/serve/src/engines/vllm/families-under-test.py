"""
A tiny random base of one family with an adapter that our trainer trained on it: python families-under-test.py FAMILY TOKENIZER OUT

Writes OUT/FAMILY/, the base, with the tokenizer of the base in TOKENIZER; OUT/right/{adapter_config.json, adapter_model.safetensors}, as the trainer
publishes it, and OUT/other/, the same weights under the names of another wrapper; OUT/result.json, the trainer's, last. Where the engine can,
all is computed in float32, in which trainer and engine agree to the fourth digit. Families in SEES are trained and asked with pictures, too.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
import numpy as np
import pyarrow as pa
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

TRAINER = Path(__file__).resolve().parents[5] / "services/train/trainer/train.py"
NEEDS_BF16 = ("qwen3.5",)  # vLLM's CPU build has no other kernel for its linear attention
WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # the trainer takes it for a processor without bf16, and computes in float32
VOCABULARY, IMAGE = 49_280, 49_200  # SmolLM2's tokenizer has 49,152; ids of pictures come behind
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
TOWER = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QWEN_TOWER = {"depth": 1, "hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 64, "num_heads": 2}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": IMAGE + 1, "vision_start_token_id": IMAGE + 2, "vision_end_token_id": IMAGE + 3}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512}


def rope(**more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, **more}}


def qwen(config, tower: dict, **text):
    return config(text_config=TEXT | text, vision_config=tower, tie_word_embeddings=False, **QWEN_IDS)


def qwen3_5():
    text = {
        **rope(mrope_section=[2, 1, 1], partial_rotary_factor=0.25, mrope_interleaved=True),
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    return qwen(hf.Qwen3_5Config, QWEN_TOWER | {"patch_size": 16, "num_position_embeddings": 16}, **text)


def around(config, text_type: str | None, tower_type: str, **more):
    text = TEXT if text_type is None else TEXT | {"model_type": text_type}
    return config(text_config=text, vision_config=TOWER | {"model_type": tower_type}, tie_word_embeddings=False, **more)


def gemma3():
    text = TEXT | TWO_KINDS | {"query_pre_attn_scalar": 32}
    return hf.Gemma3Config(
        text_config=text,
        vision_config=TOWER | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        boi_token_index=IMAGE + 2,
        eoi_token_index=IMAGE + 3,
        image_token_index=IMAGE,
    )


def gemma4():
    text = TEXT | TWO_KINDS | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 32}
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    ids: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": IMAGE + 1, "boi_token_id": IMAGE + 2, "eoi_token_id": IMAGE + 3}
    return hf.Gemma4Config(text_config=text, vision_config=tower | {"position_embedding_size": 64}, audio_config=None, **ids)


def llama4():
    text = TEXT | {"intermediate_size": 64, "intermediate_size_mlp": 192, "num_local_experts": 2, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    tower = TOWER | {"intermediate_size": 256, "projector_input_dim": 128, "projector_output_dim": 128, "vision_output_dim": 128}
    return hf.Llama4Config(text_config=text, vision_config=tower, image_token_index=IMAGE)


def idefics(config, tower: str):
    return around(config, "llama", tower, image_token_id=IMAGE, scale_factor=2, pad_token_id=2)


def llava():
    """As LLaVA 1.5: the layer before the last one, without the token that CLIP puts in front."""
    tower = TOWER | {"model_type": "clip_vision_model", "num_hidden_layers": 2, "image_size": 42}
    return hf.LlavaConfig(text_config=TEXT | {"model_type": "llama"}, vision_config=tower, image_token_index=IMAGE, tie_word_embeddings=False)


def mistral3(text_type: str):
    """Its tower knows places for pictures of eight patches each way."""
    tower = TOWER | {"model_type": "pixtral", "image_size": 112}
    return hf.Mistral3Config(text_config=TEXT | {"model_type": text_type}, vision_config=tower, image_token_index=IMAGE, tie_word_embeddings=False)


MROPE = rope(mrope_section=[4, 6, 6])
INTERLEAVED = rope(mrope_section=[6, 5, 5], mrope_interleaved=True)  # transformers always has Qwen3-VL's so, vLLM where the config says it
FAMILIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        lambda: qwen(hf.Qwen2VLConfig, {"depth": 1, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 1, "patch_size": 14}, **MROPE),
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        lambda: qwen(hf.Qwen2_5_VLConfig, QWEN_TOWER | {"patch_size": 14, "fullatt_block_indexes": [0]}, **MROPE),
    ),
    "qwen3-vl": (
        "Qwen3VLForConditionalGeneration",
        lambda: qwen(hf.Qwen3VLConfig, QWEN_TOWER | {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}, **INTERLEAVED),
    ),
    "qwen3.5": ("Qwen3_5ForConditionalGeneration", qwen3_5),
    "gemma3": ("Gemma3ForConditionalGeneration", gemma3),
    "gemma4": ("Gemma4ForConditionalGeneration", gemma4),
    "mistral3": ("Mistral3ForConditionalGeneration", lambda: mistral3("mistral")),
    "ministral3": ("Mistral3ForConditionalGeneration", lambda: mistral3("ministral3")),
    "llama4": ("Llama4ForConditionalGeneration", llama4),
    "internvl": (
        "InternVLForConditionalGeneration",
        lambda: hf.InternVLConfig(
            text_config=TEXT | {"model_type": "qwen2"}, vision_config=TOWER | {"image_size": [56, 56], "patch_size": [14, 14]}, image_token_id=IMAGE
        ),
    ),
    "smolvlm": ("SmolVLMForConditionalGeneration", lambda: idefics(hf.SmolVLMConfig, "smolvlm_vision")),
    "idefics3": ("Idefics3ForConditionalGeneration", lambda: idefics(hf.Idefics3Config, "idefics3_vision")),
    "llava": ("LlavaForConditionalGeneration", llava),
    "llava-next": (
        "LlavaNextForConditionalGeneration",
        lambda: around(hf.LlavaNextConfig, "llama", "clip_vision_model", image_token_index=IMAGE, vision_feature_layer=-1, image_grid_pinpoints=[[28, 56]]),
    ),
    # No wrapper: the base is held in so many bits in training, and served as it is.
    "llama-nf4": ("LlamaForCausalLM", lambda: hf.LlamaConfig(**TEXT)),
    "llama-int8": ("LlamaForCausalLM", lambda: hf.LlamaConfig(**TEXT)),
    "qwen3-moe": ("Qwen3MoeForCausalLM", lambda: hf.Qwen3MoeConfig(**TEXT, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)),
}


class Sight(NamedTuple):
    """How a family's own bases take pictures, made small."""

    side: int  # of a tile or of what a token stands for, in pixels; a picture here is two of them high and three wide
    image: dict[str, Any]  # what its image processor is told
    processor: dict[str, Any]  # what its processor is told
    tokens: tuple[str, ...]  # added to the tokenizer from IMAGE on
    written: str  # what the template writes for a picture
    shown: tuple[str, ...]  # the tokens that the picture becomes
    names: dict[str, str]  # by which the tokenizer knows tokens


def qwen_sight(side: int, processor: str) -> Sight:
    sized = {"patch_size": side // 2, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": side**2, "longest_edge": 16 * side**2}}
    return Sight(
        side=side,
        image={"image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor} | sized,
        processor={},
        tokens=("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
        written="<|vision_start|><|image_pad|><|vision_end|>",
        shown=("<|vision_start|>", *["<|image_pad|>"] * 6, "<|vision_end|>"),
        names={},
    )


# The tower's patches are 14 pixels, of which two each way are a token.
MISTRAL_SIGHT = Sight(
    side=28,
    image={"image_processor_type": "PixtralImageProcessor", "patch_size": 14, "size": {"longest_edge": 112}},
    processor={"processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2},
    tokens=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    written="[IMG]",
    shown=(*["[IMG]"] * 3, "[IMG_BREAK]", *["[IMG]"] * 3, "[IMG_END]"),
    names={},
)
SEES = {
    "qwen2-vl": qwen_sight(28, "Qwen2VLProcessor"),
    "qwen2.5-vl": qwen_sight(28, "Qwen2_5_VLProcessor"),
    "qwen3-vl": qwen_sight(32, "Qwen3VLProcessor"),
    "qwen3.5": qwen_sight(32, "Qwen3VLProcessor"),
    "mistral3": MISTRAL_SIGHT,
    "ministral3": MISTRAL_SIGHT,
    "internvl": Sight(
        side=56,
        # InternVL's bases say so, too, and their processor crops all the same.
        image={"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": False, "size": {"height": 56, "width": 56}},
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 4},
        tokens=("<IMG_CONTEXT>", "<video>", "<img>", "</img>"),
        written="<IMG_CONTEXT>\n",
        shown=("<img>", *["<IMG_CONTEXT>"] * (6 + 1) * 4, "</img>", "\n"),  # six tiles and the whole
        names={"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>", "start_image_token": "<img>", "end_image_token": "</img>"},
    ),
    "llava": Sight(
        side=42,
        image={"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}},
        processor={
            "processor_class": "LlavaProcessor",
            "patch_size": 14,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
        tokens=("<image>",),
        written="<image>\n",
        shown=(*["<image>"] * 9, "\n"),
        names={},
    ),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ 'WRITTEN' }}{% else %}{{ content['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QUANTIZATION = {"llama-nf4": "nf4", "llama-int8": "int8"}


def make_base(family: str, tokenizer: Path, out: Path) -> None:
    architecture, config = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(hf, architecture)(config())
    head = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # so that tokens depend on each other, and no token stands out
            tied = head is not None and parameter is head.weight and "embed" in name
            torch.nn.init.normal_(parameter, std=0.05 if tied else 0.5 if "embed_tokens" in name else parameter.shape[-1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, out / name)
    if family == "llava":  # published ones name their tower as older transformers did, and vLLM knows no other names
        file = out / "model.safetensors"
        save_file({name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    if family in SEES:
        let_see(family, out)
    (out / "base.json").write_text(json.dumps({"name": family, "revision": "1", "digest": f"sha256:{'0' * 64}"}))


def let_see(family: str, out: Path) -> None:
    """Processor, tokens and template as the family's own bases have them, with small pictures."""
    sight = SEES[family]
    (out / "preprocessor_config.json").write_text(json.dumps(sight.image | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    if sight.processor:
        (out / "processor_config.json").write_text(json.dumps(sight.processor))
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    for number in range(len(tokenizer["model"]["vocab"]), IMAGE + len(sight.tokens)):  # those in between have names, too, or numbers would move
        content = sight.tokens[number - IMAGE] if number >= IMAGE else f"<|reserved_{number}|>"
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        tokenizer["added_tokens"].append({"id": number, "content": content, **flags})
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    if sight.names:
        told = json.loads((out / "tokenizer_config.json").read_text())
        (out / "tokenizer_config.json").write_text(json.dumps(told | {"extra_special_tokens": sight.names}))
    (out / "chat_template.jinja").write_text(TEMPLATE.replace("WRITTEN", sight.written.replace("\n", "\\n")))


class Pictures:
    """Random pictures, wider than high, in a run's folder."""

    def __init__(self, base: Path, directory: Path, random: np.random.Generator):
        sight = SEES[base.name]
        self.side = sight.side
        self.folder, self.random = directory / "pictures", random
        self.folder.mkdir()
        encode = Tokenizer.from_file(str(base / "tokenizer.json")).encode
        # One text, since a newline behind a picture may join what follows.
        asked = f"<|im_start|>user\n{''.join(sight.shown)}What is it?<|im_end|>\n<|im_start|>assistant\n"
        self.prompt = encode(asked, add_special_tokens=False).ids

    def draw(self) -> str:
        file = io.BytesIO()
        size = (2 * self.side, 3 * self.side, 3)
        Image.fromarray(self.random.integers(0, 256, size=size, dtype=np.uint8)).save(file, "PNG")
        name = hashlib.sha256(file.getvalue()).hexdigest()
        (self.folder / name).write_bytes(file.getvalue())
        return f"sha256:{name}"

    def probe(self, number: int) -> dict:
        digest = self.draw()
        parts = [{"type": "image", "digest": digest}, {"type": "text", "text": "What is it?"}]
        return {"name": f"picture-{number}", "input_ids": self.prompt, "pictures": [digest], "messages": [{"role": "user", "content": parts}]}


def make_rows(count: int, random: np.random.Generator, pictures: Pictures | None) -> pa.Table:
    """Rows of three questions of random words with one answer, and where there are pictures one about them between."""
    answer, columns = [345, 999, 2000, 17, 2], {"input_ids": [], "labels": [], "seq_lengths": []}
    digests = []
    for _ in range(count):
        questions = [random.integers(10, 400, size=6).tolist() for _ in range(3)]
        if pictures is not None:
            questions.insert(1, pictures.prompt)
            digests.append([pictures.draw()])
        columns["input_ids"].append([token for question in questions for token in question + answer])
        columns["labels"].append([label for question in questions for label in [-100] * len(question) + answer])
        columns["seq_lengths"].append([len(question) + len(answer) for question in questions])
    if pictures is not None:
        columns["picture_counts"] = [[0, 1, 0, 0]] * count
    arrays: dict[str, Any] = {name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()}
    return pa.table(arrays | ({} if pictures is None else {"pictures": pa.array(digests, pa.list_(pa.string()))}))


def train(base: Path, directory: Path) -> None:
    random = np.random.default_rng(1)
    (directory / "shards").mkdir(parents=True)
    os.symlink(base.resolve(), directory / "base")
    pictures = Pictures(base, directory, random) if base.name in SEES else None
    for kind, count in (("train", 8), ("eval", 2)):
        table = make_rows(count, random, pictures)
        with pa.OSFile(str(directory / f"shards/{kind}-00000.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    spec = {
        "version": 1,
        "run_id": "01KB000000000000000000RN01",
        "attempt": 1,
        "base": json.loads((base / "base.json").read_text()),
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0},
        "quantization": QUANTIZATION.get(base.name),
        "training": {"per_device_train_batch_size": 2, "num_train_epochs": 3, "learning_rate": 0.01, "save_steps": 1000, "seed": 7},
        "probes": [
            *([] if pictures is None else [pictures.probe(i) for i in range(2)]),
            *({"name": f"probe-{i}", "input_ids": random.integers(10, 400, size=8).tolist()} for i in range(4)),
        ],
    }
    (directory / "spec.json").write_text(json.dumps(spec))
    env = os.environ | ({} if spec["base"]["name"] in NEEDS_BF16 else WITHOUT_BF16)
    ended = subprocess.run([sys.executable, str(TRAINER), str(directory)], env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit((directory / "result.json").read_text()[-2000:] if (directory / "result.json").exists() else ended.stderr[-2000:])


def main(family: str, tokenizer: Path, out: Path) -> None:
    make_base(family, tokenizer, out / family)
    train(out / family, out / "run")
    shutil.copytree(out / "run/adapter", out / "right")
    shutil.copytree(out / "right", out / "other")
    weights = load_file(out / "right/adapter_model.safetensors")
    ours, other = ("text_model", "language_model") if any("text_model" in name for name in weights) else ("language_model", "text_model")
    renamed = {
        name.replace(f".{ours}.", f".{other}.") if ours in name else name.replace("model.layers.", "model.text_model.layers."): weights[name]
        for name in weights
    }
    save_file(renamed, out / "other/adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(out / "run/progress.jsonl", out / "progress.jsonl")
    os.replace(out / "run/result.json", out / "result.json")
    shutil.rmtree(out / "run")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
