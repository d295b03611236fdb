"""
Learning from preferences: DPO and its relatives on pairs, KTO on labelled answers. Names, formulas and defaults are TRL's; the
values of its trainers are in tests/trl_curves.json, which tests/bench/beside_trl.py made.

A shard has a fourth column, `sides` (list<int32>), with an entry for each sequence: 1 chosen or good, 0 rejected or bad. A pair
is two sequences of one row, chosen then rejected. Both sides go through one packed forward pass; the output head runs only at
the answers' tokens, and a sequence's log-probability is the sum over its own.

Losses are means over the pairs of the whole optimizer step, on all ranks. The supervised loss that some methods add is a mean over
the chosen answers' tokens of the step. (TRL takes both means for each micro-batch and then the mean of those.)

dpo and kto compare with a reference: the base, or with init_from the version with which the training begins. Its log-probabilities are
computed once, before the first step, with the adapter disabled, or as it begins. They are kept in the folder of the attempt while they are computed, and in each checkpoint.

kto needs the step's KL divergence from the base. As in TRL, it is estimated by answers behind prompts of other rows: within a packed
row each prompt gets the answer of the sequence before it (the first one that of the last); a row of one sequence gets the last answer
of the row before it. These pairs stay the same for all epochs, so the base's log-probabilities of them are computed once, too. Before each
optimizer step one pass without gradients gives the adapter's, in evaluation mode. The estimate is the mean over the whole step and
all ranks, at least 0. (TRL: for each micro-batch, over the ranks. Without accumulation both are the same.)
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import head
import numpy as np
import packing
import torch
from loop import RANK, sum_over_ranks
from objectives import Objective
from spec import TrainerError
from torch import distributed
from torch.nn.functional import cross_entropy, logsigmoid

REFERENCE = "reference.f32"
KEY_LENGTH = 64


# ---------------------------------------------------------------------------------------------------------------------
# Rows


class PreferenceRows(packing.Rows):
    """
    Rows with sides. `reference` [1 or 2, sequences]: the base's log-probability of each answer; and of each mismatched answer.
    """

    columns = (*packing.COLUMNS, "sides")

    def __init__(self, directory: Path, kind: str, vocabulary: int, paired: bool, mismatched: bool):
        self.paired, self.mismatched = paired, mismatched
        super().__init__(directory, kind, vocabulary)
        lengths = [self.batches[number][1]["sides"][row : row + 2] for number, row in self.kept]
        self.first_sequence = np.concatenate([[0], np.cumsum([end - start for start, end in lengths])]).astype(int)
        self.longest = max((int(values["seq_lengths"].max()) for values, _ in self.batches if len(values["seq_lengths"])), default=0)
        self.reference = np.zeros((1 + mismatched, self.first_sequence[-1]), dtype=np.float32)

    def check(self, values: dict, bounds: dict) -> None:
        sides, starts = values["sides"], bounds["seq_lengths"]
        if not (bounds["sides"] == starts).all():
            raise ValueError("sides and seq_lengths differ in length")
        if not np.isin(sides, (0, 1)).all():
            raise ValueError("sides must be 1 (chosen) or 0 (rejected)")
        if self.paired and ((starts % 2 != 0).any() or (sides[0::2] != 1).any() or (sides[1::2] != 0).any()):
            raise ValueError("sequences must come in pairs within a row, chosen (1) before rejected (0)")
        so_far = np.concatenate([[0], np.cumsum(values["labels"] != -100)])
        if (np.diff(so_far[np.concatenate([[0], np.cumsum(values["seq_lengths"])])]) == 0).any():
            raise ValueError("a sequence has no answer: all its labels are -100")

    def __getitem__(self, index: int) -> dict:
        row = super().__getitem__(index)
        row["reference"] = self.reference[:, self.first_sequence[index] : self.first_sequence[index + 1]]
        if self.mismatched:
            row["mismatched"] = self.mismatch(index)
        return row

    def mismatch(self, index: int) -> dict:
        """A row of this row's prompts with the answers of other sequences, none longer than the longest sequence."""
        row = super().__getitem__(index)
        own = list(split_row(row))
        before = own[-1] if len(own) > 1 else list(split_row(super().__getitem__((index - 1) % len(self))))[-1]
        made = []
        for (ids, labels), (other_ids, other_labels) in zip(own, [before, *own[:-1]], strict=True):
            end, start = first_answer_token(labels), first_answer_token(other_labels)
            made.append((np.concatenate([ids[:end], other_ids[start:]]), np.concatenate([labels[:end], other_labels[start:]])))
        made = [(ids[: self.longest], labels[: self.longest]) for ids, labels in made]
        return {
            "input_ids": np.concatenate([ids for ids, _ in made]),
            "labels": np.concatenate([labels for _, labels in made]),
            "seq_lengths": np.array([len(ids) for ids, _ in made], dtype=np.int32),
            "sides": np.ones(len(made), dtype=np.int32),
            "reference": self.reference[1:, self.first_sequence[index] : self.first_sequence[index + 1]],
            **{name: row[name] for name in ("pictures", "picture_counts") if name in row},  # they stand in prompts
        }


def split_row(row: dict):
    """Each sequence of a row as (input_ids, labels)."""
    for start, end in pairwise([0, *np.cumsum(row["seq_lengths"]).tolist()]):
        yield row["input_ids"][start:end], row["labels"][start:end]


def first_answer_token(labels: np.ndarray) -> int:
    return int(np.flatnonzero(labels != -100)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Scores


@dataclass
class Scores:
    """What one pass says of each sequence: tensors [sequences]."""

    logprobs: torch.Tensor  # sum over the answer's tokens
    tokens: torch.Tensor  # of the answer
    right: torch.Tensor  # of them those that the model finds likeliest
    nll: torch.Tensor  # the supervised loss that a method adds, summed; of chosen answers only
    nll_tokens: torch.Tensor

    @staticmethod
    def of(several: list["Scores"]) -> "Scores":
        return Scores(*(torch.cat([getattr(one, name) for one in several]) for name in Scores.__dataclass_fields__))


def score(model, batch: dict) -> Scores:
    """One forward pass over a batch of `Preferences.flatten`, on the model's device."""
    batch = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    labels, owner, answered, sides = (batch.pop(name) for name in ("labels", "owner", "answered", "sides"))
    batch.pop("reference")
    batch.pop("mismatched", None)

    def of_chunk(logits, labels):
        return -cross_entropy(logits, labels, reduction="none"), (logits.detach().argmax(-1) == labels).float()

    parts = head.of_logits(model, batch | {"use_cache": False}, labels[1:], of_chunk)
    logprobs, right = (torch.cat(part) for part in zip(*parts, strict=True))

    def total(values, chosen) -> torch.Tensor:
        return values.new_zeros(len(sides)).index_add(0, owner[chosen], values[chosen])

    ones, of_chosen = torch.ones_like(logprobs), sides[owner] == 1
    return Scores(total(logprobs, answered), total(ones, answered), total(right, answered), -total(logprobs, of_chosen), total(ones, of_chosen))


# ---------------------------------------------------------------------------------------------------------------------
# Methods


@dataclass
class Totals:
    """What the losses are divided by, over the whole optimizer step and all ranks; and kto's estimate of the divergence."""

    pairs: int  # kto: answers
    nll_tokens: int
    kl: float = 0.0


def dpo(method: dict, scores: Scores, reference, sides, totals: Totals):
    beta, smoothing = method["beta"], method["label_smoothing"]
    ratios = scores.logprobs - reference
    if method["loss_type"] == "ipo":
        each = ratios / scores.tokens
        losses = (each[0::2] - each[1::2] - 1 / (2 * beta)) ** 2
    else:
        scaled = beta * (ratios[0::2] - ratios[1::2])
        if method["loss_type"] == "hinge":
            losses = torch.relu(1 - scaled)
        elif method["loss_type"] == "robust":
            losses = (-(1 - smoothing) * logsigmoid(scaled) + smoothing * logsigmoid(-scaled)) / (1 - 2 * smoothing)
        else:
            losses = -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)
    loss = losses.sum() / totals.pairs
    if method["sft_weight"]:
        loss = loss + method["sft_weight"] * scores.nll.sum() / totals.nll_tokens
    return loss, beta * ratios


def log1mexp(x):
    """log(1 - exp(x)) for x < 0, in the form that loses no digits."""
    return torch.where(x < -math.log(2), torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


def orpo(method: dict, scores: Scores, reference, sides, totals: Totals):
    each = scores.logprobs / scores.tokens
    chosen, rejected = each[0::2], each[1::2]
    ratio = logsigmoid((chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected)))
    return scores.nll.sum() / totals.nll_tokens - method["beta"] * ratio.sum() / totals.pairs, method["beta"] * each


def simpo(method: dict, scores: Scores, reference, sides, totals: Totals):
    each = scores.logprobs / scores.tokens
    losses = -logsigmoid(method["beta"] * (each[0::2] - each[1::2]) - method["simpo_gamma"])
    loss = losses.sum() / totals.pairs
    if method["cpo_alpha"]:
        loss = loss + method["cpo_alpha"] * scores.nll.sum() / totals.nll_tokens
    return loss, method["beta"] * each


def kto(method: dict, scores: Scores, reference, sides, totals: Totals):
    rewards = method["beta"] * (scores.logprobs - reference)
    above = rewards - method["beta"] * totals.kl
    losses = torch.where(
        sides == 1,
        method["desirable_weight"] * (1 - torch.sigmoid(above)),
        method["undesirable_weight"] * (1 - torch.sigmoid(-above)),
    )
    return losses.sum() / totals.pairs, rewards


# For each method: (method, scores, reference [sequences], sides [sequences], totals) to (this batch's part of the loss, rewards [sequences]).
LOSSES = {"dpo": dpo, "orpo": orpo, "simpo": simpo, "kto": kto}


def tally(rewards, sides, paired: bool) -> list[float]:
    """Counts and sums for the mean rewards: [good, their rewards, bad, their rewards, judged, of them right]."""
    rewards, good = rewards.detach().double(), sides == 1
    right = rewards[0::2] > rewards[1::2] if paired else torch.where(good, rewards > 0, rewards < 0)
    sums = torch.stack([each.double() for each in (good.sum(), rewards[good].sum(), (~good).sum(), rewards[~good].sum(), right.sum())])
    return [*sums[:4].tolist(), len(right), sums[4].item()]


def means(tallied: list[float]) -> dict:
    """`rewards_*` of a progress line, from a sum of tallies. None: there was no such answer."""
    good, good_sum, bad, bad_sum, judged, right = tallied
    chosen, rejected = (good_sum / good if good else None), (bad_sum / bad if bad else None)
    margin = None if chosen is None or rejected is None else chosen - rejected
    return {
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "rewards_margin": margin,
        "rewards_accuracy": right / judged if judged else None,
    }


def wilson(right: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share, spread = right / count, z * z / count
    centre, half = share + spread / 2, z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


class Preferences(Objective):
    def __init__(self, method: dict, from_version: bool = False):
        """from_version: the adapter begins as a version that was trained before, which is then the reference."""
        self.from_version = from_version
        self.method, self.type = method, method["type"]
        self.paired = self.type != "kto"
        self.has_reference = self.type in ("dpo", "kto")
        self.reference: np.ndarray | None = None  # as PreferenceRows.reference

    def read(self, shards: Path, kind: str, vocabulary: int) -> PreferenceRows:
        return PreferenceRows(shards, kind, vocabulary, self.paired, mismatched=not self.paired)

    # --- batches ---

    def flatten(self, rows: list[dict]) -> dict:
        """
        The collator. Beside the arguments of the model: `owner` [n], the sequence of each kept position; `answered` [n], whether
        it is one of the answer; `sides` and `reference` [sequences]; for kto `mismatched`, another such batch.
        """
        lengths = np.concatenate([row["seq_lengths"] for row in rows])
        sides = np.concatenate([row["sides"] for row in rows])
        labels = np.concatenate([row["labels"] for row in rows])
        if self.type == "orpo":  # its supervised loss is that of the chosen answers with their prompts
            rows = [row | {"targets": with_prompts_of_chosen(row)} for row in rows]
        batch = packing.flatten(rows, "targets" if self.type == "orpo" else "labels")
        kept = batch["logits_to_keep"].numpy() + 1
        batch |= {
            "float32_attention": True,  # the first step's numbers must be the reference's
            "owner": torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[kept]),
            "answered": torch.from_numpy(labels[kept] != -100),
            "sides": torch.from_numpy(sides.astype(np.int64)),
            "reference": torch.from_numpy(np.concatenate([row["reference"][0] for row in rows])),
        }
        if "mismatched" in rows[0]:
            batch["mismatched"] = self.flatten([row["mismatched"] for row in rows])
        return batch

    # --- the reference ---

    @torch.no_grad()
    def prepare(self, model, rows: PreferenceRows, directory: Path, key: str, checkpoint: Path | None, batch_size: int, autocast, attempt) -> bool:
        """
        Computes the reference's log-probabilities of all training sequences, `batch_size` rows at a time, shared among the ranks. Each result is
        written to DIR at once, so a killed process goes on where it was; `key` says to what they belong. Then checks that the adapter
        begins as the base. Returns False if SIGTERM came. Raises PACKING_SELF_TEST_FAILED.
        """
        if not self.has_reference:
            return True
        if checkpoint is not None and (checkpoint / REFERENCE).is_file():
            self.reference = np.fromfile(checkpoint / REFERENCE, dtype="<f4").reshape(rows.reference.shape)
            rows.reference = self.reference
            return True

        passes = [range(first, min(first + batch_size, len(rows))) for first in range(0, len(rows), batch_size)]
        mine = passes[RANK :: int(sum_over_ranks(1))]
        sizes = [int(rows.first_sequence[each.stop] - rows.first_sequence[each.start]) * len(rows.reference) for each in mine]
        path = directory / f"reference-{RANK}.partial"
        values = read_partial(path, key, sizes)
        was_training = model.training
        model.eval()
        with open(path, "r+b", buffering=0) as file, nullcontext() if self.from_version else model.disable_adapter(), autocast():
            file.seek(0, 2)
            for each in self.counted("reference", mine[len(values) :]):
                if attempt.stop_wanted:
                    break
                attempt.sign_of_life()
                batch = self.flatten([rows[index] for index in each])
                scored = [score(model, one).logprobs.cpu().numpy() for one in (batch, batch.get("mismatched")) if one is not None]
                values.append(np.concatenate(scored).astype("<f4"))
                file.write(values[-1].tobytes())
        model.train(was_training)
        if sum_over_ranks(attempt.stop_wanted) > 0:
            return False

        reference = torch.zeros(rows.reference.shape)
        for each, value in zip(mine, values, strict=True):
            part = slice(rows.first_sequence[each.start], rows.first_sequence[each.stop])
            reference[:, part] = torch.from_numpy(value.reshape(len(rows.reference), -1))
        if distributed.is_initialized():
            shared = reference.to(model.device)
            distributed.all_reduce(shared)  # each value comes from one rank, the others add 0
            reference = shared.cpu()
        self.reference = rows.reference = reference.numpy()
        if checkpoint is None:
            with autocast():
                self.prove_start(model, rows)
        return True

    def prove_start(self, model, rows: PreferenceRows) -> None:
        """As it begins, the adapter must answer as the reference: every reward and margin is 0, and dpo's loss ln 2."""
        was_training = model.training
        model.eval()
        # From the end and in another order than the reference was computed, so that a reference of another sequence is noticed.
        picked = [first_sequences(rows[index], 1 + self.paired) for index in reversed(range(max(0, len(rows) - 4), len(rows)))]
        batch = self.flatten(picked)
        scores, sides = score(model, batch), batch["sides"].to(model.device)
        reference = batch["reference"].to(model.device)
        totals = Totals(pairs=len(sides) // (1 + self.paired), nll_tokens=int(scores.nll_tokens.sum()))
        loss, expected = (LOSSES[self.type](self.method, scores, each, sides, totals)[0].item() for each in (reference, scores.logprobs))
        model.train(was_training)
        differences = (scores.logprobs - reference).abs() / scores.tokens.clamp(min=1)
        apart, allowed = packing.farthest(model, differences.tolist(), scores.tokens.tolist())
        if not apart <= allowed:
            raise TrainerError(
                "PACKING_SELF_TEST_FAILED",
                f"Before the first step the adapter must answer as the reference, and the loss must be {expected:.4f}: it is {loss:.4f}, and log-probabilities"
                f" differ by up to {apart:.2g} per token (allowed: {allowed:.2g}). Train with tokenize.packing: false and"
                " training.per_device_train_batch_size: 1, and report this.",
                "tokenize.packing",
            )

    def save(self, checkpoint: Path) -> None:
        if self.reference is not None:
            self.reference.astype("<f4").tofile(checkpoint / REFERENCE)

    # --- steps ---

    def begin_step(self, model, batches: list[dict]) -> Totals:
        """Counts over all micro-batches of an optimizer step, on all ranks; for kto the divergence."""
        sequences = sum_over_ranks(sum(len(batch["sides"]) for batch in batches))
        nll_tokens = sum_over_ranks(sum(int((batch["sides"][batch["owner"]] == 1).sum()) for batch in batches))
        totals = Totals(int(sequences) // (1 + self.paired), int(nll_tokens))
        if not self.paired:
            was_training = model.training
            model.eval()
            totals.kl = self.divergence([(self.score_without_gradients(model, batch["mismatched"]), batch["mismatched"]["reference"]) for batch in batches])
            model.train(was_training)
        return totals

    @torch.no_grad()
    def score_without_gradients(self, model, batch: dict) -> Scores:
        return score(model, batch)

    def divergence(self, scored) -> float:
        """The mean log-ratio to the base over (scores, reference) of mismatched answers, on all ranks; at least 0."""
        total = sum_over_ranks(sum((scores.logprobs - reference.to(scores.logprobs)).sum().item() for scores, reference in scored))
        return max(0.0, total / sum_over_ranks(sum(len(reference) for _, reference in scored)))

    def loss(self, model, batch: dict, totals: Totals):
        """This micro-batch's part of the optimizer step's loss, and the tally of its rewards."""
        sides, reference = batch["sides"], batch["reference"]
        loss, rewards = LOSSES[self.type](self.method, score(model, batch), reference, sides, totals)
        return loss, tally(rewards, sides, self.paired)

    def means(self, tallied: list[float]) -> dict:
        return means(tallied)

    # --- held-out rows ---

    @torch.no_grad()
    def measure(self, model, rows: PreferenceRows, tokens_per_pass: int = 2048) -> dict:
        """Scores of all held-out sequences: {sides, scores, mismatched}."""
        was_training = model.training
        model.eval()
        batches, waiting, size = [], [], 0
        for row in (rows[index] for index in range(len(rows))):
            if waiting and size + len(row["input_ids"]) > tokens_per_pass:
                batches.append(self.flatten(waiting))
                waiting, size = [], 0
            waiting.append(row)
            size += len(row["input_ids"])
        if waiting:
            batches.append(self.flatten(waiting))
        if not batches:
            return {}
        measured = {
            "sides": torch.cat([batch["sides"] for batch in batches]).to(model.device),
            "scores": Scores.of([score(model, batch) for batch in self.counted("evaluate", batches)]),
            "mismatched": None if self.paired else Scores.of([score(model, batch["mismatched"]) for batch in batches]),
        }
        model.train(was_training)
        return measured

    def measure_base(self, model, rows: PreferenceRows) -> dict:
        base = super().measure_base(model, rows)
        return base | {"reference": self.measure(model, rows) if self.from_version and self.has_reference else base}

    def judge(self, base: dict, now: dict):
        """(loss, rewards) of the held-out rows. Only the rank itself counts: each has measured all rows."""
        scores, sides, reference = now["scores"], now["sides"], base["reference"]
        totals = Totals(len(sides) // (1 + self.paired), int(scores.nll_tokens.sum()))
        if not self.paired:
            totals.kl = max(0.0, (now["mismatched"].logprobs - reference["mismatched"].logprobs).mean().item())
        return LOSSES[self.type](self.method, scores, reference["scores"].logprobs, sides, totals)

    def held_out_loss(self, base: dict, now: dict) -> float:
        return self.judge(base, now)[0].item()

    def evaluation(self, base: dict, now: dict) -> dict:
        """The part of `evaluation` of result.json that follows from what `measure` returned for the base and with the adapter."""
        sides = now["sides"]
        chosen = sides == 1
        tokens = now["scores"].tokens[chosen].sum().item()
        before, after = (-each["scores"].logprobs[chosen].double().sum().item() / max(tokens, 1) for each in (base, now))
        loss, rewards = self.judge(base, now)
        tallied = tally(rewards, sides, self.paired)
        judged, right = int(tallied[4]), int(tallied[5])
        low, high = wilson(right, judged)
        return {
            "base_loss": before,
            "adapter_loss": after,
            "base_accuracy": base["scores"].right[chosen].sum().item() / max(tokens, 1),
            "adapter_accuracy": now["scores"].right[chosen].sum().item() / max(tokens, 1),
            "supervised_tokens": int(tokens),
            "preference": {
                "pairs": judged,
                "accuracy": right / judged,
                "accuracy_low": low,
                "accuracy_high": high,
                "margin": means(tallied)["rewards_margin"] or 0.0,
                "chosen_logprob_change": before - after,
                "loss": loss.item(),
            },
        }


def with_prompts_of_chosen(row: dict) -> np.ndarray:
    """The labels of a row, where the prompts of chosen sequences are supervised, too, but for their first token."""
    starts = np.concatenate([[0], np.cumsum(row["seq_lengths"])[:-1]])
    supervised = np.repeat(row["sides"] == 1, row["seq_lengths"])
    supervised[starts] = False
    return np.where(supervised, row["input_ids"], row["labels"])


def first_sequences(row: dict, count: int) -> dict:
    """The row cut off after `count` sequences, without what kto adds."""
    end = int(row["seq_lengths"][:count].sum())
    tokens = {name: row[name][:end] for name in ("input_ids", "labels")}
    if "pictures" in row:
        tokens["pictures"] = row["pictures"][: sum(row["picture_counts"][:count])]
    return tokens | {name: row[name][:count] for name in ("seq_lengths", "sides")} | {"reference": row["reference"][:, :count]}


def read_partial(path: Path, key: str, sizes: list[int]) -> list[np.ndarray]:
    """
    The results that an earlier process left in `path`, as arrays of `sizes` values, as far as they are whole. Cuts off what comes after
    them. Begins the file anew if it belongs to something else.
    """
    content = path.read_bytes() if path.exists() else b""
    if content[:KEY_LENGTH] != key.encode():
        path.write_bytes(key.encode())
        return []
    values, at = [], KEY_LENGTH
    for size in sizes:
        if at + 4 * size > len(content):
            break
        values.append(np.frombuffer(content[at : at + 4 * size], dtype="<f4").copy())
        at += 4 * size
    with open(path, "r+b") as file:
        file.truncate(at)
    return values
