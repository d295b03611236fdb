"""
Pictures beside tokens: read from DIR/pictures/<sha256 in hex>, and made into what the base's vision tower takes by the base's own image
processor, where a batch is collated.

A row tells its pictures in order of appearance. Their tokens stand in `input_ids` already (packages/tokens puts them there), and a flattened
batch holds its pictures one after the other: the model puts the first picture's features where the first picture's tokens are. So a
picture stays with its sequence wherever that is packed.
"""

import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spec import TrainerError

KEPT_BYTES = 128 * 1024 * 1024  # of pictures that are ready for the tower
# Wrappers whose towers and processors are alike: a picture is some square tiles, each of which has the same number of tokens.
SEES = ("idefics3", "smolvlm")


@dataclass(frozen=True)
class Picture:
    album: "Album"
    digest: str

    def tiles(self) -> dict[str, torch.Tensor]:
        """`pixel_values` [tiles, 3, size, size] in float32 and `pixel_attention_mask` [tiles, size, size]."""
        return self.album.tiles_of(self.digest)


class Album:
    """The pictures of a run, and the base's image processor."""

    def __init__(self, base: Path, folder: Path):
        self.base, self.folder = base, folder
        self.ready: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self.bytes = 0
        self.processor: Any = None  # loaded with the first picture: most runs have none

    def picture(self, digest: str) -> Picture:
        """Raises ValueError if its file is not there."""
        if not self.path_of(digest).is_file():
            raise ValueError(f"picture {digest} is not in pictures/")
        return Picture(self, digest)

    def path_of(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")

    def load_processor(self) -> None:
        from transformers import AutoConfig, AutoImageProcessor

        config = AutoConfig.from_pretrained(self.base, local_files_only=True)
        if config.model_type not in SEES:
            raise TrainerError(
                "BASE_CANNOT_SEE", f"the rows have pictures, and training with pictures works on {', '.join(SEES)}, not on {config.model_type}.", "base"
            )
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.image_token, self.tokens_of_tile = config.image_token_id, side**2 // config.scale_factor**2
        try:
            self.processor = AutoImageProcessor.from_pretrained(self.base, local_files_only=True)
        except Exception as error:
            raise TrainerError("BASE_UNREADABLE", f"base/ has no image processor that transformers can load: {error}", "base") from error

    def tiles_of(self, digest: str) -> dict[str, torch.Tensor]:
        if digest in self.ready:
            self.ready.move_to_end(digest)
            return self.ready[digest]
        if self.processor is None:
            self.load_processor()
        try:
            image = open_picture(self.path_of(digest).read_bytes())
        except Exception as error:
            raise TrainerError("PICTURE_UNREADABLE", f"picture {digest} cannot be read: {error}. Remove it from the dataset.", "pictures") from error
        made = self.processor([[image]], return_tensors="pt")
        tiles = {name: made[name][0] for name in ("pixel_values", "pixel_attention_mask")}
        self.ready[digest] = tiles
        self.bytes += size_of(tiles)
        while self.bytes > KEPT_BYTES and len(self.ready) > 1:
            self.bytes -= size_of(self.ready.popitem(last=False)[1])
        return tiles


def open_picture(content: bytes):
    """A Pillow image in RGB, upright; of a moving picture its first frame. So transformers and vLLM read pictures, too."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:  # as vLLM does it: on white
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def size_of(tiles: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tiles.values())


def inputs_of(pictures: Sequence[Picture], input_ids: np.ndarray) -> dict[str, torch.Tensor]:
    """
    What the model takes beside the tokens of a batch, whose pictures these are, in order; nothing if there are none. `pixel_values`
    [1, tiles, 3, size, size]. Raises SHARD_INVALID if the tokens are for other pictures.
    """
    if not pictures:
        return {}
    tiles = [picture.tiles() for picture in pictures]
    album = pictures[0].album
    expected = sum(len(each["pixel_values"]) for each in tiles) * album.tokens_of_tile
    found = int((input_ids == album.image_token).sum())
    if found != expected:
        raise TrainerError("SHARD_INVALID", f"{len(tiles)} pictures take {expected} tokens, and the rows have {found} for them.", "shards")
    return {name: torch.cat([each[name] for each in tiles])[None] for name in tiles[0]}
