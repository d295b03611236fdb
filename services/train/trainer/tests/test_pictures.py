"""Pictures stay with their sequence, however rows are packed, and change nothing but what the model sees."""

import base64
import hashlib
import io
import json

import pyarrow as pa
import pytest
import torch
from conftest import Directory
from PIL import Image
from safetensors.torch import load_file
from test_language_model import TEXT, modules_of
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

IMAGE, TOKENS = 60, 4  # of a picture
COLOURS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 230)}
SIZE = 16


@pytest.fixture(scope="module")
def sees(tmp_path_factory):
    """A base whose answers depend strongly on what it sees."""
    directory = tmp_path_factory.mktemp("sees")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 4}
    config = Idefics3Config(
        text_config=TEXT | {"model_type": "llama"}, vision_config=tower, image_token_id=IMAGE, scale_factor=2, pad_token_id=2, tie_word_embeddings=True
    )
    model = Idefics3ForConditionalGeneration(config)
    patches = model.model.vision_model.embeddings
    torch.nn.init.normal_(patches.patch_embedding.weight, std=0.3)
    torch.nn.init.zeros_(patches.position_embedding.weight)
    torch.nn.init.normal_(model.model.connector.modality_projection.proj.weight, std=0.5)
    model.generation_config.eos_token_id = 2
    model.to(torch.bfloat16).save_pretrained(directory)
    edge = {"longest_edge": SIZE}
    processor = {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False, "size": edge, "max_image_size": edge}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return directory


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


def write(run: Directory, kind: str, rows) -> None:
    """Rows of sequences (digests, tokens, answer)."""
    numbers = pa.list_(pa.int32())
    table = pa.table(
        {
            "input_ids": pa.array([[token for _, prompt, answer in row for token in prompt + answer] for row in rows], numbers),
            "labels": pa.array([[label for _, prompt, answer in row for label in [-100] * len(prompt) + answer] for row in rows], numbers),
            "seq_lengths": pa.array([[len(prompt + answer) for _, prompt, answer in row] for row in rows], numbers),
            "pictures": pa.array([[digest for digests, _, _ in row for digest in digests] for row in rows], pa.list_(pa.string())),
            "picture_counts": pa.array([[len(digests) for digests, _, _ in row] for row in rows], numbers),
        }
    )
    with pa.OSFile(str(run.path / f"shards/{kind}-00000.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def sequence_of(run: Directory, colour: str, shade: int):
    return [keep(run, picture(COLOURS[colour], shade))], [3, *SEEN, 5], ANSWERS[colour]


@pytest.fixture
def shown(directory, sees):
    def make(name="run", **options):
        run = directory(name, base=sees, rows=[], held_out=[], **options)
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


def test_it_learns_to_tell_what_it_sees(shown):
    run = shown(training={"num_train_epochs": 10, "save_steps": 100}, lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0})
    assert run.run() == 0, run.result["error"]
    assert all(name.startswith("model.text_model.layers.") for name in modules_of(run))
    # All of these answers follow the same tokens: without the pictures none could be told from the others.
    assert run.result["evaluation"]["adapter_accuracy"] == 1, run.result["evaluation"]
    seen, text = run.result["probes"]
    assert seen["adapter"]["tokens"] == ANSWERS["red"][:1]
    address = seen["messages"][0]["content"][0]["image_url"]["url"]
    assert address.startswith("data:image/png;base64,")
    assert base64.b64decode(address.split(",")[1]) == picture(COLOURS["red"], 11)
    assert seen["messages"][0]["content"][1] == {"type": "text", "text": "?"}
    assert "messages" not in text


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
        made = album.picture(keep(run, content)).tiles()
        expected = processor([[shows]], return_tensors="pt")
        assert made["pixel_values"].shape == (1, 3, SIZE, SIZE)
        assert torch.allclose(made["pixel_values"], expected["pixel_values"][0], atol=0.02)
        assert torch.equal(made["pixel_attention_mask"], expected["pixel_attention_mask"][0])


@pytest.mark.parametrize("wrong", ["missing", "broken", "other number of tokens", "counts", "preference"])
def test_what_is_wrong_with_pictures_is_told(shown, wrong):
    run = shown()
    digest = keep(run, picture(COLOURS["red"], 1))
    row = [([digest], [3, *SEEN, 5], [20, 2])]
    if wrong == "missing":
        (run.path / "pictures" / digest.removeprefix("sha256:")).unlink()
    elif wrong == "broken":
        (run.path / "pictures" / digest.removeprefix("sha256:")).write_bytes(b"\x89PNG\r\n\x1a\nno more")
    elif wrong == "other number of tokens":
        row = [([digest], [3, *SEEN[:-2], 5], [20, 2])]
    write(run, "train", [row])
    if wrong == "counts":
        path = run.path / "shards/train-00000.arrow"
        table = pa.ipc.open_stream(path.read_bytes()).read_all().set_column(4, "picture_counts", pa.array([[2]], pa.list_(pa.int32())))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif wrong == "preference":
        path = run.path / "shards/train-00000.arrow"
        write(run, "train", [row * 2])
        table = pa.ipc.open_stream(path.read_bytes()).read_all().append_column("sides", pa.array([[1, 0]], pa.list_(pa.int32())))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        run.spec["method"] = {"type": "dpo"}
        (run.path / "spec.json").write_text(json.dumps(run.spec))
    assert run.run() == 1
    assert run.result["error"]["code"] == ("PICTURE_UNREADABLE" if wrong == "broken" else "SHARD_INVALID"), run.result["error"]


def test_pictures_on_a_base_that_cannot_see(directory):
    run = directory(rows=[], held_out=[])
    write(run, "train", [[sequence_of(run, "red", 0)]])
    assert run.run() == 1
    assert run.result["error"]["code"] == "BASE_CANNOT_SEE"
