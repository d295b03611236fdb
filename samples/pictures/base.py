"""
Makes a small base that takes pictures: SmolLM2's language model in Idefics3's wrapper (which is SmolVLM's too), with a vision tower of random weights.

    python samples/pictures/base.py [--text DIR] [--out DIR]    (.loraline/bases/smollm2-135m-instruct, .loraline/bases/smollm2-135m-pictures)

Nothing here was trained: the tower's weights are drawn from a fixed seed, one layer that looks at each patch of 8 x 8 pixels, two that also
look at all of them. Such features still tell shapes and colours apart; the projector behind them turns the directions in which drawn shapes
(shapes.py) differ most into random directions of the language model's embeddings. It has no words for them: to name what a picture
shows, an adapter must be trained, while the base as it is can only guess. A picture takes four tokens, and three around them.
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from shapes import COLOURS, KINDS, SHAPES, draw

NAME = "smollm2-135m-pictures"
REVISION = "2"
SIZE, PATCH, WIDTH, INNER, LAYERS, SHUFFLE = 64, 8, 384, 1536, 3, 4
TOKENS = (SIZE // PATCH // SHUFFLE) ** 2
VOCABULARY, GLOBAL, FAKE, IMAGE, END = 49280, 49152, 49189, 49190, 49279  # SmolVLM's numbers
MEAN = STD = [0.5, 0.5, 0.5]
HIDDEN = 576
STRENGTH = 12.0
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def vision_config() -> dict:
    return {
        "model_type": "idefics3_vision",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


def make_tower():
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

    tower = Idefics3VisionTransformer(Idefics3VisionConfig(**vision_config())).eval()
    generator = torch.Generator().manual_seed(0)

    def fill(parameter, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        fill(tower.embeddings.patch_embedding.weight, 2 * (3 * PATCH * PATCH) ** -0.5)
        fill(tower.embeddings.patch_embedding.bias, 0.3)
        for layer, looks_around in zip(tower.encoder.layers, (0, 8, 30), strict=True):
            # Queries and keys are zero, so that each patch sees the mean of all: where a shape stands does not matter.
            layer.self_attn.v_proj.weight.copy_(torch.eye(WIDTH))
            layer.self_attn.out_proj.weight.copy_(torch.eye(WIDTH) * looks_around)
            if looks_around < 30:
                fill(layer.mlp.fc1.weight, 2 * WIDTH**-0.5)
                fill(layer.mlp.fc1.bias, 1)
                fill(layer.mlp.fc2.weight, 2 * INNER**-0.5)
    return tower


def pixels(images) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def features_of(tower, images: torch.Tensor) -> torch.Tensor:
    """The tower's features of each picture, their mean over its patches: [pictures, WIDTH] in float32."""
    return torch.cat([tower(part).last_hidden_state.mean(1) for part in images.split(200)])


def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, and what they show: [pictures, shapes + colours], one for each that is true."""
    random = np.random.default_rng(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    shown = [[float(shape == each) for each in SHAPES] + [float(colour == each) for each in COLOURS] for shape, colour in kinds]
    return pixels([draw(shape, colour, random) for shape, colour in kinds]), torch.tensor(shown)


@torch.no_grad()
def make_projector(tower) -> torch.Tensor:
    """
    Sets the tower's last bias so that features are zero in the mean, and returns the projector's weights. What tells the drawn pictures apart
    is found by ridge regression, and each shape and colour gets a random direction.
    """
    images, shown = drawn(3000, 1)
    features = features_of(tower, images)
    mean = features.mean(0)
    centred, wanted = features - mean, shown - shown.mean(0)
    tower.post_layernorm.bias.sub_(mean)
    ridge = 0.5 * centred.std(0).mean() ** 2 * torch.eye(WIDTH)
    weights = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ wanted)
    directions = torch.randn(shown.shape[1], HIDDEN, generator=torch.Generator().manual_seed(1))
    directions *= STRENGTH / directions.norm(dim=1, keepdim=True)
    patches = SHUFFLE**2
    return (weights @ directions).T.repeat(1, patches) / patches


def make_base(text: Path, out: Path) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # Weights as they are stored; computed in float32, since a processor without bf16 takes ten times as long in it.
    tower = make_tower().bfloat16().float()
    tensors = {"model.connector.modality_projection.proj.weight": make_projector(tower)}
    tensors |= {f"model.vision_model.{name}": weight for name, weight in tower.state_dict().items()}
    for name, weight in load_file(text / "model.safetensors").items():
        tensors[name.replace("model.", "model.text_model.", 1)] = weight
    words = tensors["model.text_model.embed_tokens.weight"]
    # SmolVLM's vocabulary has more tokens; what stands around a picture gets the embedding of an average token.
    more = words.float().mean(0, keepdim=True).expand(VOCABULARY - len(words), -1)
    tensors["model.text_model.embed_tokens.weight"] = torch.cat([words, more.to(words.dtype)])
    save_file({name: weight.bfloat16().contiguous() for name, weight in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)

    config = json.loads((text / "config.json").read_text()) | {"vocab_size": VOCABULARY}
    special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    whole = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "dtype": "bfloat16",
        "image_token_id": IMAGE,
        "scale_factor": SHUFFLE,
        "tie_word_embeddings": True,
        "text_config": {name: value for name, value in config.items() if name != "architectures"},
        "vision_config": vision_config(),
    }
    write_json(out / "config.json", whole | special)
    write_json(out / "generation_config.json", special)
    write_json(out / "processor_config.json", {"processor_class": "Idefics3Processor", "image_seq_len": TOKENS})
    edge = {"longest_edge": SIZE}
    named = {"image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor"}
    sized = {"size": edge, "max_image_size": edge, "do_image_splitting": False, "do_pad": True, "do_resize": True, "resample": 1}
    scaled = {"do_convert_rgb": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    write_json(out / "preprocessor_config.json", {**named, **sized, **scaled})
    write_tokenizer(text, out)
    (out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    if (text / "LICENSE").exists():
        shutil.copyfile(text / "LICENSE", out / "LICENSE")
    write_json(out / "base.json", {"name": NAME, "revision": REVISION, "digest": digest_of(out)})


def write_tokenizer(text: Path, out: Path) -> None:
    """The language model's tokenizer with SmolVLM's tokens for pictures."""
    tokenizer = json.loads((text / "tokenizer.json").read_text())
    tiles = {GLOBAL + 1 + row * 6 + column: f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)}
    named = {GLOBAL: "<global-img>", **tiles, FAKE: "<fake_token_around_image>", IMAGE: "<image>", END: "<end_of_utterance>"}
    for number in range(GLOBAL, VOCABULARY):  # those in between have names, too, or numbers would move
        content = named.get(number, f"<|reserved_special_token_{number - GLOBAL}|>")
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        tokenizer["added_tokens"].append({"id": number, "content": content, **flags})
    write_json(out / "tokenizer.json", tokenizer)
    settings = json.loads((text / "tokenizer_config.json").read_text())
    write_json(out / "tokenizer_config.json", settings | {"additional_special_tokens": [named[FAKE], named[IMAGE], named[END]]})


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digest_of(directory: Path) -> str:
    """As packages/models/src/base-ref.ts computes it."""
    lines = []
    for path in sorted(directory.iterdir()):
        with open(path, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def main() -> None:
    bases = Path(__file__).resolve().parents[2] / ".loraline/bases"
    parser = argparse.ArgumentParser(description="Makes a small base that takes pictures.")
    parser.add_argument("--text", type=Path, default=bases / "smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=bases / NAME, help="default: %(default)s")
    given = parser.parse_args()
    out = given.out.absolute()
    if (out / "base.json").exists() and json.loads((out / "base.json").read_text()).get("revision") == REVISION:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        partial.chmod(0o755)
        make_base(given.text, partial)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"base: {out.name} is ready in {out}")


if __name__ == "__main__":
    main()
