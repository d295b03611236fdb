"""
What is learned from the rows of the shards: how a batch is made, its loss, and what is measured on held-out rows. Here what every
method has, and learning from answers; preferences.py has learning from preferences.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import loop
import packing


class Objective(ABC):
    has_reference = False  # whether `prepare` must run before the first step
    counted: Callable[[str, Sequence], Iterable] = staticmethod(lambda phase, items: items)  # iterates, and tells how far it is

    @abstractmethod
    def read(self, shards: Path, kind: str, vocabulary: int) -> Any:
        """The rows of shards/<kind>-*.arrow, a packing.Rows. Raises SHARD_INVALID."""

    @abstractmethod
    def flatten(self, rows: list[dict]) -> dict:
        """The collator: rows to one flattened batch."""

    def prepare(self, model, rows: Any, directory: Path, key: str, checkpoint: Path | None, batch_size: int, autocast, attempt) -> bool:
        """What must be known before the first step. Returns False if SIGTERM came meanwhile."""
        return True

    def save(self, checkpoint: Path) -> None:  # noqa: B027  most objectives have nothing to save
        """Writes what a resumed process needs of it into a checkpoint that is being made."""

    @abstractmethod
    def begin_step(self, model, batches: list[dict]) -> Any:
        """What the losses of an optimizer step's micro-batches are divided by: totals over all of them, on all ranks. Collective."""

    @abstractmethod
    def loss(self, model, batch: dict, totals: Any) -> tuple[Any, list[float] | None]:
        """A micro-batch's part of the optimizer step's loss, and a tally of its rewards, if it has some."""

    def means(self, tallied: list[float]) -> dict:
        """Fields of a step's progress line, from the sum of tallies over steps and ranks."""
        return {}

    @abstractmethod
    def measure(self, model, rows: Any) -> Any:
        """What held-out rows give with the model as it is; what it is, the next two functions know. No collective."""

    def measure_base(self, model, rows: Any) -> Any:
        """`measure` before training, with the adapter disabled."""
        with model.disable_adapter():
            return self.measure(model, rows)

    @abstractmethod
    def held_out_loss(self, base: Any, now: Any) -> float:
        """`eval_loss`, from what `measure` returned for the base, and now."""

    @abstractmethod
    def evaluation(self, base: Any, now: Any) -> dict:
        """The part of result.json's `evaluation` that follows from the same."""


class Supervised(Objective):
    """The mean cross entropy of the supervised tokens."""

    def __init__(self, label_smoothing: float):
        self.label_smoothing = label_smoothing

    def read(self, shards: Path, kind: str, vocabulary: int) -> packing.Rows:
        return packing.Rows(shards, kind, vocabulary)

    def flatten(self, rows: list[dict]) -> dict:
        return packing.flatten(rows)

    def begin_step(self, model, batches: list[dict]) -> int:
        return int(loop.sum_over_ranks(sum(int((batch["labels"] != -100).sum()) for batch in batches)))

    def loss(self, model, batch: dict, totals: int):
        return packing.sum_of_losses(model, batch, totals, self.label_smoothing), None

    def measure(self, model, rows: packing.Rows) -> tuple[float, float, int]:
        return packing.evaluate(model, rows.sequences(lambda indices: self.counted("evaluate", indices)))

    def held_out_loss(self, base, now) -> float:
        return now[0]

    def evaluation(self, base, now) -> dict:
        (base_loss, base_accuracy, supervised_tokens), (adapter_loss, adapter_accuracy, _) = base, now
        return {
            "base_loss": base_loss,
            "adapter_loss": adapter_loss,
            "base_accuracy": base_accuracy,
            "adapter_accuracy": adapter_accuracy,
            "supervised_tokens": supervised_tokens,
        }
