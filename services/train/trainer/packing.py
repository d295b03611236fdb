"""
Packed rows: how they are read, flattened into one forward pass, and proven to be kept apart by attention.py.

A shard is an Arrow IPC stream with the columns `input_ids`, `labels` and `seq_lengths` (list<int32>). A row holds whole
sequences one after the other; the first label of each is -100. With pictures there are two more: `pictures` (list<string>), the digests of
the row's pictures in order, and `picture_counts` (list<int32>), how many each sequence has. A batch is flattened: all its sequences stand one
after the other in one row of tokens, without padding.
"""

import hashlib
import math
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import attention
import head
import numpy as np
import pictures
import torch
from spec import TrainerError
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("input_ids", "labels", "seq_lengths")


# ---------------------------------------------------------------------------------------------------------------------
# Rows


class Rows(torch.utils.data.Dataset):
    """
    Rows of the shards `<kind>-*.arrow`, memory-mapped. A row is a dict of int32 arrays, one per column; one with pictures has these as well.
    """

    columns: tuple[str, ...] = COLUMNS

    def __init__(self, directory: Path, kind: str, vocabulary: int):
        self.album = pictures.Album(directory.parent / "base", directory.parent / "pictures")
        self.pictures: list[tuple[list, list] | None] = []  # of each record batch, by row: digests, and how many each sequence has
        self.batches = [batch for path in sorted(directory.glob(f"{kind}-*.arrow")) for batch in self.read_shard(path, vocabulary)]
        # A row without a supervised token teaches nothing, and a batch of such rows would divide by zero.
        self.kept, self.dropped, self.supervised_tokens = [], 0, 0
        for number, (values, bounds) in enumerate(self.batches):
            so_far = np.concatenate([[0], np.cumsum(values["labels"] != -100)])
            supervised = np.diff(so_far[bounds["labels"]])
            self.kept += [(number, int(index)) for index in np.flatnonzero(supervised)]
            self.dropped += int((supervised == 0).sum())
            self.supervised_tokens += int(supervised.sum())

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict:
        number, row = self.kept[index]
        values, bounds = self.batches[number]
        found: dict = {name: values[name][bounds[name][row] : bounds[name][row + 1]] for name in self.columns}
        if (of_batch := self.pictures[number]) is not None:
            digests, counts = of_batch
            found |= {"pictures": [self.album.picture(digest) for digest in digests[row]], "picture_counts": counts[row]}
        return found

    def first(self, count: int) -> "Rows":
        """The first `count` rows, sharing the memory of all."""
        part = copy(self)
        part.kept = self.kept[:count]
        return part

    def tokens(self) -> np.ndarray:
        """The tokens of each row: int64 [rows]."""
        lengths = [np.diff(bounds["input_ids"]) for _, bounds in self.batches]
        return np.fromiter((lengths[number][row] for number, row in self.kept), np.int64, len(self.kept))

    def digest(self) -> str:
        """sha256 of all rows: equal for the same tokens and labels in the same order, whatever they are computed in."""
        sha = hashlib.sha256()
        for index in range(len(self)):
            row = self[index]
            for values in (row[name] for name in self.columns):
                sha.update(len(values).to_bytes(8, "little") + values.astype("<i4").tobytes())
            for picture in row.get("pictures", ()):
                sha.update(picture.digest.encode())
        return f"sha256:{sha.hexdigest()}"

    def sequences(self, counted=iter):
        """Every sequence as a row of its own, in order. counted(indices): iterates over the rows' indices."""
        for index in counted(range(len(self))):
            yield from sequences_of(self[index])

    def read_shard(self, path: Path, vocabulary: int) -> list[tuple[dict, dict]]:
        """Returns each record batch as (flat values, row bounds), both by column. Raises SHARD_INVALID."""
        import pyarrow as pa

        batches = []
        try:
            for batch in pa.ipc.open_stream(pa.memory_map(str(path))):
                values, bounds = {}, {}
                for name in self.columns:
                    column = batch.column(name).cast(pa.list_(pa.int32()))
                    offsets = column.offsets.to_numpy()
                    values[name], bounds[name] = column.flatten().to_numpy(), offsets - offsets[0]
                ends = np.concatenate([[0], np.cumsum(values["seq_lengths"])])  # ends of the sequences; the ends of rows must be among them
                if not (bounds["input_ids"] == bounds["labels"]).all() or not (ends[bounds["seq_lengths"]] == bounds["labels"]).all():
                    raise ValueError("input_ids, labels and the sum of seq_lengths differ in length")
                if len(values["labels"]):
                    if (values["seq_lengths"] < 1).any() or (values["labels"][ends[:-1]] != -100).any():
                        raise ValueError("a sequence is empty, or its first label is not -100")
                    if not 0 <= values["input_ids"].min() <= max(values["input_ids"].max(), values["labels"].max()) < vocabulary:
                        raise ValueError(f"a token id is outside the base's vocabulary of {vocabulary}")
                    self.check(values, bounds)
                batches.append((values, bounds))
                self.pictures.append(self.read_pictures(batch, bounds["seq_lengths"]) if "pictures" in batch.schema.names else None)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise TrainerError("SHARD_INVALID", f"shards/{path.name}: {error}", f"shards/{path.name}") from error
        return batches

    def read_pictures(self, batch: "pa.RecordBatch", sequences: np.ndarray) -> tuple[list, list]:
        """The digests and counts of each row of a record batch. Raises ValueError."""
        digests, counts = batch.column("pictures").to_pylist(), batch.column("picture_counts").to_pylist()
        if any(sum(each) != len(named) for named, each in zip(digests, counts, strict=True)) or [len(each) for each in counts] != np.diff(sequences).tolist():
            raise ValueError("picture_counts does not say how many pictures each sequence has")
        for digest in {digest for named in digests for digest in named}:
            self.album.picture(digest)
        return digests, counts

    def check(self, values: dict, bounds: dict) -> None:
        """Checks what a method needs beyond that, on a record batch that is not empty. Raises ValueError."""


def sequences_of(row: dict):
    """Each sequence of a row as a row of its own."""
    taken, counts = 0, row.get("picture_counts")
    for number, (start, end) in enumerate(pairwise([0, *np.cumsum(row["seq_lengths"]).tolist()])):
        sequence = {"input_ids": row["input_ids"][start:end], "labels": row["labels"][start:end], "seq_lengths": np.array([end - start])}
        if counts is not None:
            sequence["pictures"] = row["pictures"][taken : taken + counts[number]]
            taken += counts[number]
        yield sequence


def rows_within_budget(tokens: np.ndarray, budget: float) -> int:
    """
    How many of the held-out rows, which have `tokens` tokens each, to evaluate within `budget` tokens. It is a power of two, so that runs
    with different settings on one dataset are mostly evaluated on the same rows and can be compared; but 32 at least, because fewer tell
    little; and never more than there are.
    """
    affordable = int(np.searchsorted(np.cumsum(tokens), budget, side="right"))
    if affordable >= len(tokens):
        return len(tokens)
    return min(len(tokens), max(32, 1 << max(affordable, 1).bit_length() - 1))


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def flatten(rows: list[dict], targets: str = "labels") -> dict:
    """
    The collator: rows to one flattened batch. `input_ids` and `position_ids` [1, tokens] (with pictures of some bases [3, 1, tokens]), `cu_seq_lens_*`
    [sequences + 1]. The output head takes a fifth of a small model's time, so it runs only at the positions that
    predict a supervised token: `logits_to_keep` [n]. The expected tokens are `labels` [1 + n]; the first is always -100,
    because transformers counts supervised tokens from the second one on. Pictures: see pictures.py. `targets`: the column of the rows that holds the labels.
    """
    input_ids = np.concatenate([row["input_ids"] for row in rows])
    labels = np.concatenate([row[targets] for row in rows])
    lengths = np.concatenate([row["seq_lengths"] for row in rows])
    ends = np.cumsum(lengths)
    supervised = np.flatnonzero(labels != -100)  # never a sequence's first token, so position - 1 is of the same sequence
    bounds = torch.tensor([0, *ends], dtype=torch.int32)
    return {
        "input_ids": torch.from_numpy(input_ids.astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.arange(len(input_ids)) - np.repeat(ends - lengths, lengths))[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
        "logits_to_keep": torch.from_numpy(supervised - 1),
        "labels": torch.from_numpy(np.concatenate([[-100], labels[supervised]]).astype(np.int64)),
        **pictures.inputs_of([picture for row in rows for picture in row.get("pictures", ())], input_ids, lengths),
    }


def sum_of_losses(model, batch: dict, num_items_in_batch=None, label_smoothing: float = 0.0):
    """
    Cross entropy, summed, of a flattened batch on the model's device, over the supervised tokens of the whole optimizer step (not over
    this micro-batch). Label smoothing spreads its share of the target over the whole vocabulary, as transformers' LabelSmoother does.
    """

    def of_chunk(logits, labels):
        return (cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing),)

    labels = batch["labels"][1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"} | {"use_cache": False}
    loss = sum(part for (part,) in head.of_logits(model, inputs, labels, of_chunk))
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def inputs_of(model, batch: dict) -> tuple[dict, torch.Tensor]:
    """A flattened batch as arguments of the model, and the expected tokens. The KV cache is off: with it, packed sequences would see each other."""
    batch = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    labels = batch.pop("labels")
    return batch | {"use_cache": False}, labels[1:]


@torch.no_grad()
def evaluate(model, sequences, tokens_per_pass: int = 2048) -> tuple[float, float, int]:
    """Returns (mean loss, accuracy, number) over the supervised tokens of sequences, each a row of its own.

    Accuracy is the share of tokens that the model finds likeliest.
    """
    was_training = model.training
    model.eval()
    total, right, count, waiting, size = 0.0, 0, 0, [], 0

    def of_chunk(logits, labels):
        return cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) == labels).sum()

    def flush():
        nonlocal total, right, count, waiting, size
        if waiting:
            inputs, labels = inputs_of(model, flatten(waiting))
            for loss, hits in head.of_logits(model, inputs, labels, of_chunk):
                total += loss.item()
                right += hits.item()
            count += labels.numel()
        waiting, size = [], 0

    for sequence in sequences:
        if size + len(sequence["input_ids"]) > tokens_per_pass:
            flush()
        waiting.append(sequence)
        size += len(sequence["input_ids"])
    flush()
    model.train(was_training)
    return total / max(count, 1), right / max(count, 1), count


# ---------------------------------------------------------------------------------------------------------------------
# Proof


LONGEST_PROVEN = 2048  # tokens of a sequence: eager attention needs heads x tokens x tokens numbers


def largest_batch(rows: Rows, batch_size: int) -> int:
    """Tokens that a batch has at most."""
    return int(rows.tokens().max()) * batch_size


def farthest(model, differences: list[float], counts: list[int]) -> tuple[float, float]:
    """
    Of sequences whose mean log-probability was computed in two ways, such as packed and alone: the difference, in nats per token, that is the largest
    beside what rounding explains, and what rounding explains there. NaN is the largest of all. `counts`: the tokens of each.

    In bf16, rounding depends on the shapes of the products: by 0.09 (standard deviation) for a token of SmolLM2-135M, 0.42 at most in 1,500, on a
    processor with AMX. So the mean of a few tokens differs by more than that of many.
    """
    exact = model.get_input_embeddings().weight.dtype == torch.float32
    allowed = [1e-4 if exact else 3e-2 + 0.3 / max(1, count) ** 0.5 for count in counts]
    return max(zip(differences, allowed, strict=True), key=lambda one: math.inf if math.isnan(one[0]) else one[0] / one[1])


@torch.no_grad()
def prove_packing(model, rows: Rows, batch_size: int, max_rows: int, max_tokens: int) -> float:
    """
    Runs up to `max_rows` rows in batches as training does and, with the attention that the base itself has, one sequence at a
    time: the loss of every sequence must be the same. Returns the largest difference; raises PACKING_SELF_TEST_FAILED.
    """
    # Sequences from the start of each row; on a slow machine a few of them. Of a long one its beginning, to which nothing later matters.
    sampled, size = [], 0
    for row in (rows[index] for index in range(min(max_rows, len(rows)))):
        sequences = []
        for sequence in sequences_of(row):
            length = len(sequence["input_ids"])
            if length > LONGEST_PROVEN:
                if sequence.get("pictures"):  # its beginning might end within a picture
                    continue
                length = LONGEST_PROVEN
                sequence |= {"seq_lengths": np.array([length])} | {name: sequence[name][:length] for name in ("input_ids", "labels")}
            if (sequence["labels"] != -100).any() and (size == 0 or size + length <= max_tokens):
                sequences.append(sequence)
                size += length
        if sequences:
            sampled.append(sequences)

    def each(logits, targets):
        return (cross_entropy(logits, targets, reduction="none"),)

    def means(losses, counts):
        return [part.mean().item() for part in losses.split(counts)]

    was_training = model.training
    model.eval()
    if sampled and head.is_large(model, largest_batch(rows, batch_size)):
        head.prove_head(model, *inputs_of(model, flatten(sampled[0][:1])))
    packed = []
    for first in range(0, len(sampled), batch_size):
        sequences = [sequence for row in sampled[first : first + batch_size] for sequence in row]
        parts = head.of_logits(model, *inputs_of(model, flatten(sequences)), each)
        packed += means(torch.cat([part for (part,) in parts]), [int((sequence["labels"] != -100).sum()) for sequence in sequences])

    base, implementation = model.get_base_model(), model.config._attn_implementation
    attention.use(base, "eager")  # each base's own code; transformers' other implementations may leave something out as well
    alone, counts = [], []
    for sequence in (sequence for row in sampled for sequence in row):
        input_ids = torch.from_numpy(sequence["input_ids"].astype(np.int64))[None].to(model.device)
        targets = torch.from_numpy(sequence["labels"][1:].astype(np.int64)).to(model.device)
        kept = (targets != -100).nonzero()[:, 0]
        seen = pictures.inputs_of(sequence.get("pictures", ()), sequence["input_ids"])
        inputs = {"input_ids": input_ids, "use_cache": False, "logits_to_keep": kept} | {name: value.to(model.device) for name, value in seen.items()}
        parts = head.of_logits(model, inputs, targets[kept], each)
        alone += means(torch.cat([part for (part,) in parts]), [len(kept)])
        counts.append(len(kept))
    attention.use(base, implementation)
    model.train(was_training)

    # A leak between sequences changes a loss by more than rounding does.
    if not counts:
        raise TrainerError(
            "PACKING_SELF_TEST_FAILED",
            f"Whether packed sequences see each other could not be tried: in the first {max_rows} rows every sequence has pictures and more than {LONGEST_PROVEN} tokens,"
            " or nothing to learn. Add shorter rows, or smaller or fewer pictures.",
            "tokenize.packing",
        )
    worst, allowed = farthest(model, [abs(a - b) / max(1.0, b) for a, b in zip(packed, alone, strict=True)], counts)
    if not worst <= allowed:
        raise TrainerError(
            "PACKING_SELF_TEST_FAILED",
            f"Packed sequences see each other, or attention is not this base's: their losses differ from those of the same sequences alone by up to {worst:.2g}"
            f" (allowed: {allowed:.2g}). This base's attention does not keep them apart; train it with tokenize.packing: false"
            " and training.per_device_train_batch_size: 1.",
            "tokenize.packing",
        )
    return worst
