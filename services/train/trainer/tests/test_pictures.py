"""Pictures stay with their sequence, however rows are packed, and change nothing but what the model sees."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers as hf
from conftest import Directory
from PIL import Image
from safetensors.torch import load_file
from test_language_model import TEXT, modules_of

IMAGE, TOKENS = 60, 4  # of a picture
COLOURS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 230)}
SIZE = 16


def idefics3():
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 4}
    config = hf.Idefics3Config(
        text_config=TEXT | {"model_type": "llama"}, vision_config=tower, image_token_id=IMAGE, scale_factor=2, pad_token_id=2, tie_word_embeddings=True
    )
    model = hf.Idefics3ForConditionalGeneration(config)
    patches = model.model.vision_model.embeddings
    torch.nn.init.normal_(patches.patch_embedding.weight, std=0.3)
    torch.nn.init.zeros_(patches.position_embedding.weight)
    torch.nn.init.normal_(model.model.connector.modality_projection.proj.weight, std=0.5)
    edge = {"longest_edge": SIZE}
    return model, {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False, "size": edge, "max_image_size": edge}


def internvl():
    """Its tower's patches become a quarter as many tokens. A square picture is one tile."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 4}
    config = hf.InternVLConfig(text_config=TEXT | {"model_type": "qwen2"}, vision_config=tower, image_token_id=IMAGE)
    model = hf.InternVLForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.patch_embeddings.projection.weight, std=0.3)
    strengthen(model.model.multi_modal_projector)
    square = {"height": SIZE, "width": SIZE}
    return model, {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": False, "size": square}


def llava():
    """The layer before the last one, without CLIP's first token."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
    config = hf.LlavaConfig(text_config=TEXT | {"model_type": "llama"}, vision_config=tower, image_token_index=IMAGE)
    model = hf.LlavaForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.patch_embedding.weight, std=0.3)
    strengthen(model.model.multi_modal_projector)
    square = {"height": SIZE, "width": SIZE}
    return model, {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}, "crop_size": square}


def mistral3():
    """A picture in its own shape; two patches each way are a token."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 32, "patch_size": 4}
    text = TEXT | {"model_type": "mistral"}
    config = hf.Mistral3Config(text_config=text, vision_config=tower | {"model_type": "pixtral"}, image_token_index=IMAGE, spatial_merge_size=2)
    model = hf.Mistral3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.vision_tower.patch_conv.weight, std=0.3)
    strengthen(model.model.multi_modal_projector)
    return model, {"image_processor_type": "PixtralImageProcessor", "patch_size": 4, "size": {"longest_edge": 32}}


def strengthen(projector) -> None:
    for parameter in projector.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)


QWEN_TOWER = {"depth": 1, "hidden_size": 32, "out_hidden_size": TEXT["hidden_size"], "intermediate_size": 16, "num_heads": 2, "patch_size": 4}
QWEN_TOWERS: dict[str, tuple[str, dict]] = {
    "qwen2_vl": ("Qwen2VL", {"depth": 1, "embed_dim": 32, "hidden_size": TEXT["hidden_size"], "num_heads": 2, "mlp_ratio": 1, "patch_size": 4}),
    "qwen2_5_vl": ("Qwen2_5_VL", QWEN_TOWER | {"fullatt_block_indexes": [0]}),
    "qwen3_vl": ("Qwen3VL", QWEN_TOWER | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}),
}


def qwen(kind: str):
    name, tower = QWEN_TOWERS[kind]
    half = TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}}
    ids = {"image_token_id": IMAGE, "video_token_id": IMAGE + 1, "vision_start_token_id": 7, "vision_end_token_id": 8}
    config = getattr(hf, f"{name}Config")(text_config=TEXT | rope, vision_config=tower, tie_word_embeddings=True, **ids)
    model = getattr(hf, f"{name}ForConditionalGeneration")(config)
    torch.nn.init.normal_(model.model.visual.patch_embed.proj.weight, std=0.3)
    strengthen(model.model.visual.merger)
    processor = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": 64, "longest_edge": 4096}}
    return model, processor | {"image_processor_type": "Qwen2VLImageProcessor"}


OTHERS = {"idefics3": idefics3, "internvl": internvl, "llava": llava, "mistral3": mistral3}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """A base of a family whose answers depend strongly on what it sees."""

    def make(family: str):
        directory = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        model, processor = OTHERS[family]() if family in OTHERS else qwen(family)
        model.generation_config.eos_token_id = 2
        model.to(torch.bfloat16).save_pretrained(directory)
        (directory / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
        return directory

    return cache(make)


@pytest.fixture
def sees(base_of):
    return base_of("idefics3")


def picture(colour, shade: int = 0, size=(SIZE, SIZE), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, tuple(min(255, value + shade) for value in colour)).save(file, kind)
    return file.getvalue()


def keep(run: Directory, content: bytes) -> str:
    (run.path / "pictures").mkdir(exist_ok=True)
    name = hashlib.sha256(content).hexdigest()
    (run.path / "pictures" / name).write_bytes(content)
    return f"sha256:{name}"


SEEN = [7] + [IMAGE] * TOKENS + [8]
END = 51  # not 2: the embedding of the padding token is zero, and so is its logit
ANSWERS = {"red": [20, END], "green": [30, END], "blue": [40, END]}


def write(run: Directory, kind: str, rows, sides: Sequence[int] = ()) -> None:
    """Rows of sequences (digests, tokens, answer). sides: of the sequences in turn."""
    numbers = pa.list_(pa.int32())
    table = pa.table(
        {
            "input_ids": pa.array([[token for _, prompt, answer in row for token in prompt + answer] for row in rows], numbers),
            "labels": pa.array([[label for _, prompt, answer in row for label in [-100] * len(prompt) + answer] for row in rows], numbers),
            "seq_lengths": pa.array([[len(prompt + answer) for _, prompt, answer in row] for row in rows], numbers),
            "pictures": pa.array([[digest for digests, _, _ in row for digest in digests] for row in rows], pa.list_(pa.string())),
            "picture_counts": pa.array([[len(digests) for digests, _, _ in row] for row in rows], numbers),
            **({"sides": pa.array([[*sides] * (len(row) // len(sides)) for row in rows], numbers)} if sides else {}),
        }
    )
    with pa.OSFile(str(run.path / f"shards/{kind}-00000.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def sequence_of(run: Directory, colour: str, shade: int):
    return [keep(run, picture(COLOURS[colour], shade))], [3, *SEEN, 5], ANSWERS[colour]


@pytest.fixture
def shown(directory, base_of):
    def make(name="run", family="idefics3", **options):
        run = directory(name, base=base_of(family), rows=[], held_out=[], **options)
        text = ([], [3, 11, 12, 5], [13, 2])
        two = [keep(run, picture(COLOURS[each], 5)) for each in ("red", "blue")]
        rows = [[sequence_of(run, colour, 3 * i) for colour in COLOURS] + [text] for i in range(6)]
        write(run, "train", [*rows, [(two, [3, *SEEN, *SEEN, 5], [50, 2]), text]])
        write(run, "eval", [[sequence_of(run, colour, 19)] for colour in COLOURS])
        probe = {"name": "seen", "input_ids": [3, *SEEN, 5], "pictures": [keep(run, picture(COLOURS["red"], 11))]}
        probe["messages"] = [{"role": "user", "content": [{"type": "image", "digest": probe["pictures"][0]}, {"type": "text", "text": "?"}]}]
        run.spec["probes"] = [probe, {"name": "text", "input_ids": [3, 11, 12, 5]}]
        (run.path / "spec.json").write_text(json.dumps(run.spec))
        return run

    return make


@pytest.mark.parametrize("family", [*OTHERS, *QWEN_TOWERS])
def test_it_learns_to_tell_what_it_sees(shown, family):
    run = shown(family=family, training={"num_train_epochs": 10, "save_steps": 100}, lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0})
    assert run.run() == 0, run.result["error"]
    assert all(name.startswith(f"model.{'text_model' if family == 'idefics3' else 'language_model'}.layers.") for name in modules_of(run))
    # All of these answers follow the same tokens: without the pictures none could be told from the others.
    assert run.result["evaluation"]["adapter_accuracy"] == 1, run.result["evaluation"]
    seen, text = run.result["probes"]
    assert seen["adapter"]["tokens"] == ANSWERS["red"][:1]
    address = seen["messages"][0]["content"][0]["image_url"]["url"]
    assert address.startswith("data:image/png;base64,")
    assert base64.b64decode(address.split(",")[1]) == picture(COLOURS["red"], 11)
    assert seen["messages"][0]["content"][1] == {"type": "text", "text": "?"}
    assert "messages" not in text


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preferences_learn_to_tell_what_they_see(shown, method):
    """Which answer is the better one only the picture says."""
    run = shown(family="qwen2_vl", training={"num_train_epochs": 8, "save_steps": 100}, lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0})
    others = dict(zip(COLOURS, [*list(COLOURS)[1:], "red"], strict=True))

    def pair(colour, shade):
        digests, prompt, answer = sequence_of(run, colour, shade)
        return [(digests, prompt, answer), (digests, prompt, ANSWERS[others[colour]])]

    for kind, shades in (("train", range(0, 18, 3)), ("eval", [19])):
        write(run, kind, [[each for colour in COLOURS for each in pair(colour, shade)] for shade in shades], sides=[1, 0])
    run.spec["method"] = {"type": method}
    (run.path / "spec.json").write_text(json.dumps(run.spec))
    assert run.run() == 0, run.result["error"]
    assert run.result["evaluation"]["preference"]["accuracy"] == 1, run.result["evaluation"]


def test_a_run_that_was_killed_ends_as_one_that_was_not(shown):
    def at():
        import loop

        saved = loop.Reporter.on_save

        def and_die(self, *arguments, **options):
            saved(self, *arguments, **options)
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

        loop.Reporter.on_save = and_die

    whole, killed = shown("whole"), shown("killed")
    assert whole.run() == 0, whole.result["error"]
    killed.run_and_die(at)
    assert killed.run() == 0, killed.result["error"]
    assert killed.result["loss_history"] == whole.result["loss_history"]
    assert load_equal(killed, whole)


def load_equal(one: Directory, other: Directory) -> bool:
    ours, theirs = (load_file(run.path / "adapter/adapter_model.safetensors") for run in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_self_test_finds_pictures_that_change_places(shown, monkeypatch):
    import packing

    original = packing.flatten

    def mixed_up(rows):
        if sum(len(row.get("pictures", ())) for row in rows) > 1:
            rows = [dict(row) for row in rows]
            given = [picture for row in rows for picture in row.get("pictures", ())][::-1]
            for row in rows:
                count = len(row.get("pictures", ()))
                row["pictures"], given = given[:count], given[count:]
        return original(rows)

    monkeypatch.setattr(packing, "flatten", mixed_up)
    run = shown()
    assert run.run() == 1
    assert run.result["error"]["code"] == "PACKING_SELF_TEST_FAILED"


@pytest.mark.parametrize("family", ["internvl", "llava", "llava with CLIP's token", "mistral3"])
def test_a_picture_has_as_many_tokens_as_its_model_makes_of_it(base_of, family):
    import pictures

    name, *full = family.split(" with ")
    more = {"vision_feature_select_strategy": "full"} if full else {}
    model: Any = hf.AutoModelForImageTextToText.from_pretrained(base_of(name), dtype=torch.float32, **more)
    processor, ours = hf.AutoImageProcessor.from_pretrained(base_of(name)), pictures.FAMILIES[name](model.config)
    ready = [ours.prepare(processor, Image.new("RGB", size)) for size in [(16, 16), (50, 30), (9, 90), (3, 2)]]
    with torch.no_grad():
        features = model.get_image_features(**ours.together(ready)).pooler_output
    assert sum(map(ours.tokens_of, ready)) == sum(len(each) for each in features)
    if name == "mistral3":
        assert [ours.tokens_of(each) for each in ready] == [2 * 2, 4 * 3, 1 * 4, 1 * 1]
    else:
        tiles = [len(each["pixel_values"]) for each in ready]
        assert tiles == ([1, 7, 11, 7] if name == "internvl" else [1, 1, 1, 1])


@pytest.mark.parametrize("family", QWEN_TOWERS)
def test_positions_are_those_that_the_model_finds_for_each_sequence(base_of, family):
    import pictures

    model = hf.AutoModelForImageTextToText.from_pretrained(base_of(family))
    ours, random = pictures.Grids(model.config), np.random.default_rng(3)
    sequences, grids, expected = [], [], []
    for _ in range(20):
        shapes = random.integers(1, 5, size=(random.integers(0, 4), 2)).tolist()
        texts = [random.integers(3, 50, size=random.integers(1, 6)).tolist() for _ in range(len(shapes) + 1)]
        tokens = texts[0] + [token for (rows, columns), text in zip(shapes, texts[1:], strict=True) for token in [IMAGE] * (rows * columns) + text]
        grid = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in shapes])
        ids = torch.tensor([tokens])
        expected.append(model.model.get_rope_index(ids, (ids == IMAGE).long(), image_grid_thw=grid)[0])
        sequences.append(tokens)
        grids += [{"image_grid_thw": each[None]} for each in grid]
    made = ours.positions(np.concatenate(sequences), np.array([len(each) for each in sequences]), grids)
    assert torch.equal(made, torch.cat(expected, dim=2))


def test_the_self_test_finds_positions_that_are_those_of_text(shown, monkeypatch):
    import pictures

    monkeypatch.setattr(pictures.Grids, "positions", lambda *_: None)
    run = shown(family="qwen2_5_vl")
    assert run.run() == 1
    assert run.result["error"]["code"] == "PACKING_SELF_TEST_FAILED"


def test_what_is_made_of_a_picture_is_what_transformers_makes(shown, sees):
    import pictures
    from transformers import AutoImageProcessor

    run = shown()
    album = pictures.Album(sees, run.path / "pictures")
    processor = AutoImageProcessor.from_pretrained(sees)
    file = io.BytesIO()
    clear = Image.new("RGBA", (9, 30), (200, 10, 10, 0))
    clear.save(file, "PNG")
    for content, shows in [
        (picture((200, 100, 50), size=(40, 20), kind="JPEG"), Image.open(io.BytesIO(picture((200, 100, 50), size=(40, 20), kind="JPEG")))),
        (picture((1, 2, 3), size=(5, 64), kind="WEBP"), Image.new("RGB", (5, 64), (1, 2, 3))),
        (picture((10, 200, 30), kind="GIF"), Image.open(io.BytesIO(picture((10, 200, 30), kind="GIF"))).convert("RGB")),
        (file.getvalue(), Image.new("RGB", (9, 30), (255, 255, 255))),  # what is clear is white, as vLLM has it
    ]:
        made = album.picture(keep(run, content)).ready()
        expected = processor([[shows]], return_tensors="pt")
        assert made["pixel_values"].shape == (1, 3, SIZE, SIZE)
        assert torch.allclose(made["pixel_values"], expected["pixel_values"][0], atol=0.02)
        assert torch.equal(made["pixel_attention_mask"], expected["pixel_attention_mask"][0])


@pytest.mark.parametrize("wrong", ["missing", "broken", "other number of tokens", "tokens of another", "counts"])
def test_what_is_wrong_with_pictures_is_told(shown, wrong):
    run = shown(family="qwen2_vl" if wrong == "tokens of another" else "idefics3")
    digest = keep(run, picture(COLOURS["red"], 1))
    row = [([digest], [3, *SEEN, 5], [20, 2])]
    if wrong == "missing":
        (run.path / "pictures" / digest.removeprefix("sha256:")).unlink()
    elif wrong == "broken":
        (run.path / "pictures" / digest.removeprefix("sha256:")).write_bytes(b"\x89PNG\r\n\x1a\nno more")
    elif wrong == "tokens of another":
        row = [([digest], [3, *SEEN[:-2], 5], [20, 2]), ([digest], [3, *SEEN[:-1], IMAGE, 5], [20, 2])]
    elif wrong == "other number of tokens":
        row = [([digest], [3, *SEEN[:-2], 5], [20, 2])]
    write(run, "train", [row])
    if wrong == "counts":
        path = run.path / "shards/train-00000.arrow"
        table = pa.ipc.open_stream(path.read_bytes()).read_all().set_column(4, "picture_counts", pa.array([[2]], pa.list_(pa.int32())))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert run.run() == 1
    assert run.result["error"]["code"] == ("PICTURE_UNREADABLE" if wrong == "broken" else "SHARD_INVALID"), run.result["error"]


def test_pictures_on_a_base_that_cannot_see(directory):
    run = directory(rows=[], held_out=[])
    write(run, "train", [[sequence_of(run, "red", 0)]])
    assert run.run() == 1
    assert run.result["error"]["code"] == "BASE_CANNOT_SEE"
