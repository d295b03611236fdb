"""
Pictures beside tokens: read from DIR/pictures/<sha256 in hex>, and made into what the base's vision tower takes by the base's own image
processor, where a batch is collated.

A row tells its pictures in order of appearance. Their tokens stand in `input_ids` already (packages/tokens puts them there), and a flattened
batch holds its pictures one after the other: the model puts the first picture's features where the first picture's tokens are. So a
picture stays with its sequence wherever that is packed.

What a family of bases does with a picture is a class in FAMILIES.
"""

import io
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spec import TrainerError

KEPT_BYTES = 128 * 1024 * 1024  # of pictures that are ready for the tower


class Family(ABC):
    """How bases of a kind take pictures."""

    def __init__(self, config: Any):
        self.image_token: int = config.image_token_id

    @abstractmethod
    def prepare(self, processor: Any, image: Any) -> dict[str, torch.Tensor]:
        """What the tower takes for one picture."""

    @abstractmethod
    def tokens_of(self, ready: dict[str, torch.Tensor]) -> int:
        """How many tokens stand for a prepared picture."""

    @abstractmethod
    def together(self, ready: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What the model takes for several."""

    def alone(self, input_ids: np.ndarray) -> dict[str, torch.Tensor]:
        """What the model takes beside that for one sequence without positions, so that it finds them itself."""
        return {}

    def positions(self, input_ids: np.ndarray, lengths: np.ndarray, ready: list[dict[str, torch.Tensor]]) -> torch.Tensor | None:
        """Where the tokens of a flattened batch stand, if not one after the other in each sequence."""
        return None


class Tiles(Family):
    """A picture is some square tiles, each of which has the same number of tokens."""

    def __init__(self, config: Any):
        super().__init__(config)
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.tokens_of_tile = side**2 // config.scale_factor**2

    def prepare(self, processor, image):
        """`pixel_values` [tiles, 3, size, size] in float32 and `pixel_attention_mask` [tiles, size, size]."""
        made = processor([[image]], return_tensors="pt")
        return {name: made[name][0] for name in ("pixel_values", "pixel_attention_mask")}

    def tokens_of(self, ready):
        return len(ready["pixel_values"]) * self.tokens_of_tile

    def together(self, ready):
        return {name: torch.cat([each[name] for each in ready])[None] for name in ready[0]}


class Squares(Family):
    """A picture is one square of a fixed size."""

    def __init__(self, config: Any):
        super().__init__(config)
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.tokens_of_square = patches + (config.vision_feature_select_strategy == "full")  # with the token that CLIP puts in front

    def prepare(self, processor, image):
        """`pixel_values` [squares, 3, size, size] in float32."""
        return {"pixel_values": processor([image], return_tensors="pt")["pixel_values"]}

    def tokens_of(self, ready):
        return len(ready["pixel_values"]) * self.tokens_of_square

    def together(self, ready):
        return {"pixel_values": torch.cat([each["pixel_values"] for each in ready])}


class Canvases(Squares):
    """A picture is the squares of a canvas that has nearly its shape, and where there are several the whole in another one."""

    def __init__(self, config: Any):
        Family.__init__(self, config)
        (height, width), (rows, columns) = config.vision_config.image_size, config.vision_config.patch_size
        self.tokens_of_square = int((height // rows) * (width // columns) * config.downsample_ratio**2)

    def prepare(self, processor, image):
        """As of `Squares`. The base's whole processor always asks its image processor to crop, whatever that one's file says."""
        return {"pixel_values": processor([image], crop_to_patches=True, return_tensors="pt")["pixel_values"]}


class Rows(Family):
    """A picture is rows of tokens in its own shape; what ends a row is a token of the text."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.side: int = config.vision_config.patch_size * config.spatial_merge_size

    def prepare(self, processor, image):
        """`pixel_values` [1, 3, height, width] in float32 and `image_sizes` [1, 2]. The base's whole processor tells its image processor this side, too."""
        made = processor([image], patch_size=self.side, return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_sizes")}

    def tokens_of(self, ready):
        return int((ready["image_sizes"] // self.side).prod())

    def together(self, ready):
        sizes = torch.cat([each["image_sizes"] for each in ready])
        height, width = sizes.amax(dim=0).tolist()
        pixels = [each["pixel_values"] for each in ready]
        padded = [torch.nn.functional.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in pixels]
        return {"pixel_values": torch.cat(padded), "image_sizes": sizes}


class Grids(Family):
    """
    A picture is a grid of patches, as large as the picture; `merge` x `merge` of them are a token. Tokens have three positions: time, row and column
    (M-RoPE). Those of a picture count on from the text before it, in rows and columns; the text behind goes on after the longer side.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.merge: int = config.vision_config.spatial_merge_size

    def prepare(self, processor, image):
        """`pixel_values` [patches, numbers of a patch] in float32 and `image_grid_thw` [1, 3]."""
        made = processor([image], return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_grid_thw")}

    def tokens_of(self, ready):
        return int(ready["image_grid_thw"].prod()) // self.merge**2

    def together(self, ready):
        return {name: torch.cat([each[name] for each in ready]) for name in ready[0]}

    def alone(self, input_ids):
        return {"mm_token_type_ids": torch.from_numpy((input_ids == self.image_token).astype(np.int64))[None]}

    def positions(self, input_ids, lengths, ready):
        """[3, 1, tokens]. The self test compares them with those that the model itself finds for each sequence (`alone`)."""
        found = np.zeros((3, len(input_ids)), dtype=np.int64)
        grids = iter([(rows // self.merge, columns // self.merge) for each in ready for _, rows, columns in each["image_grid_thw"].tolist()])
        for start, end in pairwise([0, *np.cumsum(lengths).tolist()]):
            at, position = start, 0
            pictures = np.flatnonzero(input_ids[start:end] == self.image_token) + start
            while at < end:
                left = pictures[pictures >= at]
                until = int(left[0]) if len(left) else end
                found[:, at:until] = position + np.arange(until - at)
                position += until - at
                if until < end:
                    rows, columns = next(grids)
                    at = until + rows * columns
                    if at > end or (input_ids[until:at] != self.image_token).any():
                        raise TrainerError("SHARD_INVALID", f"a picture takes {rows * columns} tokens, and its sequence has others in their place.", "shards")
                    found[:, until:at] = position + np.stack([np.zeros(rows * columns, dtype=np.int64), *np.indices((rows, columns)).reshape(2, -1)])
                    position += max(rows, columns)
                else:
                    at = end
        return torch.from_numpy(found)[:, None]


# By model_type. packages/models/src/architectures.ts says which of them are served.
FAMILIES: dict[str, type[Family]] = {
    **dict.fromkeys(("idefics3", "smolvlm"), Tiles),
    "internvl": Canvases,
    "llava": Squares,
    "mistral3": Rows,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), Grids),
}


@dataclass(frozen=True)
class Picture:
    album: "Album"
    digest: str

    def ready(self) -> dict[str, torch.Tensor]:
        """As the tower takes it."""
        return self.album.prepared(self.digest)


class Album:
    """The pictures of a run, and the base's image processor."""

    def __init__(self, base: Path, folder: Path):
        self.base, self.folder = base, folder
        self.ready: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self.bytes = 0
        self.loaded: tuple[Family, Any] | None = None  # with the first picture: most runs have none

    def picture(self, digest: str) -> Picture:
        """Raises ValueError if its file is not there."""
        if not self.path_of(digest).is_file():
            raise ValueError(f"picture {digest} is not in pictures/")
        return Picture(self, digest)

    def path_of(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")

    def family_and_processor(self) -> tuple[Family, Any]:
        if self.loaded is not None:
            return self.loaded
        from transformers import AutoConfig, AutoImageProcessor

        config = AutoConfig.from_pretrained(self.base, local_files_only=True)
        if config.model_type not in FAMILIES:
            raise TrainerError(
                "BASE_CANNOT_SEE", f"the rows have pictures, and training with pictures works on {', '.join(FAMILIES)}, not on {config.model_type}.", "base"
            )
        try:
            processor = AutoImageProcessor.from_pretrained(self.base, local_files_only=True)
        except Exception as error:
            raise TrainerError("BASE_UNREADABLE", f"base/ has no image processor that transformers can load: {error}", "base") from error
        self.loaded = FAMILIES[config.model_type](config), processor
        return self.loaded

    @property
    def family(self) -> Family:
        return self.family_and_processor()[0]

    def prepared(self, digest: str) -> dict[str, torch.Tensor]:
        if digest in self.ready:
            self.ready.move_to_end(digest)
            return self.ready[digest]
        family, processor = self.family_and_processor()
        try:
            image = open_picture(self.path_of(digest).read_bytes())
        except Exception as error:
            raise TrainerError("PICTURE_UNREADABLE", f"picture {digest} cannot be read: {error}. Remove it from the dataset.", "pictures") from error
        made = family.prepare(processor, image)
        self.ready[digest] = made
        self.bytes += size_of(made)
        while self.bytes > KEPT_BYTES and len(self.ready) > 1:
            self.bytes -= size_of(self.ready.popitem(last=False)[1])
        return made


def open_picture(content: bytes):
    """A Pillow image in RGB, upright; of a moving picture its first frame. So transformers and vLLM read pictures, too."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:  # as vLLM does it: on white
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def size_of(ready: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in ready.values())


def inputs_of(pictures: Sequence[Picture], input_ids: np.ndarray, lengths: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    """
    What the model takes beside the tokens of a batch, whose pictures these are, in order; nothing if there are none. lengths: those of the batch's
    sequences; None: it is one sequence, whose positions the model finds itself. Raises SHARD_INVALID if the tokens are for other pictures.
    """
    if not pictures:
        return {}
    ready = [picture.ready() for picture in pictures]
    family = pictures[0].album.family
    expected, found = sum(map(family.tokens_of, ready)), int((input_ids == family.image_token).sum())
    if found != expected:
        raise TrainerError("SHARD_INVALID", f"{len(ready)} pictures take {expected} tokens, and the rows have {found} for them.", "shards")
    inputs = family.together(ready)
    if lengths is None:
        return inputs | family.alone(input_ids)
    positions = family.positions(input_ids, lengths, ready)
    return inputs if positions is None else inputs | {"position_ids": positions}
