"""
transformers.Trainer, and what Loraline adds to it: exact counters that survive a resume, an end at the first loss that
is not finite, checkpoints that are complete or absent, and a stop after the current step on SIGTERM.
"""

import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sharding
import torch
from packing import Rows, rows_within_budget
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from spec import TrainerError
from torch import distributed
from torch.utils.data import BatchSampler, DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy, SchedulerType

if TYPE_CHECKING:
    from objectives import Objective

MANIFEST = "checkpoint.json"
METER = "meter.json"
BEST = "best.safetensors"
RANK = int(os.environ.get("RANK", "0"))


@dataclass
class Meter:
    """Counters of the whole run. They are stored in each checkpoint, so a process that resumes goes on counting."""

    tokens_seen: int = 0
    examples_seen: int = 0  # sequences
    loss_history: list = field(default_factory=list)  # [step, mean loss since the entry before]
    open_loss: float = 0.0  # sum of the losses of the steps that are not in the history yet
    open_steps: int = 0
    eval_history: list = field(default_factory=list)  # [step, loss on the held-out rows]
    best: list | None = None  # [step, loss] of the evaluation with the lowest loss; kept with load_best_model_at_end only
    evaluations_without_gain: int = 0  # since the best one; smaller gains than early_stopping_threshold do not count
    open_rewards: list = field(default_factory=list)  # preferences.py's tallies, summed since the last entry of the history

    def of_all_ranks(self) -> "Meter":
        """Returns the sums over all ranks. A collective operation: every rank must call it."""
        return Meter(
            int(sum_over_ranks(self.tokens_seen)),
            int(sum_over_ranks(self.examples_seen)),
            self.loss_history,  # means over the ranks already
            sum_over_ranks(self.open_loss),
            self.open_steps,
            self.eval_history,  # of the whole held-out set, on every rank
            self.best,
            self.evaluations_without_gain,
            [sum_over_ranks(value) for value in self.open_rewards],
        )

    def of_this_rank(self) -> "Meter":
        """The inverse of `of_all_ranks`, for a resume: rank 0 takes the sums, the other ranks begin at zero."""
        return self if RANK == 0 else replace(self, tokens_seen=0, examples_seen=0, open_loss=0.0, open_rewards=[0.0] * len(self.open_rewards))


class Rounds:
    """
    Batches of `rows` rows of an epoch, of which each of `ranks` processes takes one in each round. Where the rows end within a round, the batches
    after them are empty. (accelerate would fill them with the epoch's first rows, so the last step would learn these twice as much, and
    something else with another number of processes.)
    """

    def __init__(self, sampler: Any, rows: int, ranks: int):
        self.sampler, self.rows, self.ranks = sampler, rows, ranks  # accelerate puts another sampler here

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / (self.rows * self.ranks)) * self.ranks

    def __iter__(self):
        batches = BatchSampler(self.sampler, self.rows, drop_last=False)
        yield from batches
        yield from [[]] * (len(self) - len(batches))


IDLE = "idle"  # marks a batch that a process computes only because the others have one


class LoraTrainer(Trainer):
    """
    objective: what is learned from the rows.
    loraplus_lr_ratio: lora_B's learning rate divided by lora_A's (LoRA+); None: both have the same.
    neftune_noise_alpha: strength of the noise on the embeddings during training (NEFTune); None or 0: no noise.
    """

    meter: Meter
    model: PeftModel
    train_dataset: Rows
    objective: "Objective"
    noise_bounds: torch.Tensor  # where each sequence of the current batch begins and ends: [sequences + 1]
    sign_of_life = staticmethod(lambda: None)  # called in each forward and backward pass

    def __init__(self, *, args: TrainingArguments, objective: "Objective", loraplus_lr_ratio: float | None, neftune_noise_alpha: float | None, **options):
        # transformers makes no checkpoints of a base that is shared out, because an optimizer of its weights would be in parts. Here the
        # adapter alone has an optimizer, and every process has all of it. The question is asked once, here.
        strategy, args.save_strategy = args.save_strategy, SaveStrategy.NO
        self.objective = objective
        super().__init__(args=args, data_collator=self.batch_of, **options)
        args.save_strategy = strategy
        self.loss_is_scaled_for_ga = True  # micro-batches need no further division; see compute_loss
        self.loraplus_lr_ratio, self.noise_alpha = loraplus_lr_ratio, neftune_noise_alpha
        self.unread: list[tuple[int, torch.Tensor]] = []  # (step, loss) of micro-batches

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = create_loraplus_optimizer(
                self.model, optimizer_class, loraplus_lr_ratio=self.loraplus_lr_ratio, loraplus_weight_decay=self.args.weight_decay, **options
            )
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps, optimizer=None):
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (ValueError, TypeError, ArithmeticError) as error:
            message = f"training.lr_scheduler_kwargs: transformers makes no schedule {SchedulerType(self.args.lr_scheduler_type).value} of this: {error}"
            raise TrainerError("SPEC_INVALID", message, "training.lr_scheduler_kwargs") from error

    def train(self, *arguments, **options):
        """transformers' `train`, with NEFTune's noise. The noise is removed when it returns, so later evaluations are without it."""
        if not self.noise_alpha:
            return super().train(*arguments, **options)
        hook = self.model.get_input_embeddings().register_forward_hook(self.add_noise)
        try:
            return super().train(*arguments, **options)
        finally:
            hook.remove()

    def add_noise(self, embedding, inputs, output):
        """
        NEFTune: uniform noise up to alpha / sqrt(tokens x width). `tokens` is the length of the token's own sequence, as in the
        paper. (transformers' own hook would take a whole packed batch for one sequence.) No noise in evaluation mode.
        """
        if not embedding.training:
            return output
        lengths = self.noise_bounds.diff().to(output.device)
        largest = self.noise_alpha / (lengths * output.shape[-1]).sqrt()
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * largest.repeat_interleave(lengths)[None, :, None].to(output.dtype)

    def get_train_dataloader(self) -> DataLoader:
        batches: Any = Rounds(self._get_train_sampler(), self._train_batch_size, self.args.world_size)
        loader = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory)
        return self.accelerator.prepare(loader)

    def batch_of(self, rows: list[dict]) -> dict:
        """The collator. A process without rows takes the shortest one, whose loss does not count: every pass is the work of all processes."""
        if rows:
            return self.objective.flatten(rows)
        return self.objective.flatten([self.train_dataset[int(self.train_dataset.tokens().argmin())]]) | {IDLE: True}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of an optimizer step, and what their losses are divided by, so that these add up to the step's."""
        batches = list(islice(epoch_iterator, num_batches))
        return batches, self.objective.begin_step(self.model, [batch for batch in batches if IDLE not in batch])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        idle = inputs.pop(IDLE, False)
        loss, rewards = self.objective.loss(model, inputs, num_items_in_batch)
        if idle:
            loss, rewards = loss * 0, rewards and [0.0] * len(rewards)  # all processes add up their rewards
        if rewards is not None:
            before = self.meter.open_rewards or [0.0] * len(rewards)
            self.meter.open_rewards = [a + b for a, b in zip(before, rewards, strict=True)]
        return loss * self.accelerator.num_processes  # gradients are averaged over the ranks

    def _sync_replicated_trainable_parameters(self, model) -> None:
        """transformers averages the gradients of a sharded base's adapter one by one, and not with gloo. See `training_step`."""

    def _save(self, output_dir=None, state_dict=None):
        """The adapter, which every process has whole: to ask a model for all its tensors is the work of all processes, and this one writes alone."""
        super()._save(output_dir, {name: parameter.detach() for name, parameter in self.model.named_parameters() if parameter.requires_grad})

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.sign_of_life()
        self.noise_bounds = inputs["cu_seq_lens_q"]
        if IDLE not in inputs:
            self.meter.tokens_seen += inputs["input_ids"].numel()
            self.meter.examples_seen += inputs["cu_seq_lens_q"].numel() - 1
        loss = super().training_step(model, inputs, num_items_in_batch)
        if sharding.is_sharded(self.model) and self.accelerator.sync_gradients:
            sharding.average_gradients([parameter for parameter in self.model.parameters() if parameter.requires_grad])
        self.unread.append((self.state.global_step + 1, loss.detach()))
        if loss.device.type == "cpu":
            self.read_losses()
        return loss

    def read_losses(self) -> None:
        """
        Counts the losses since the last reading. On a GPU reading waits until it has done all that it was given, so it is done once for each
        line of the log and each checkpoint. Raises NON_FINITE_LOSS, so that no checkpoint holds weights of after that.
        """
        steps, losses = [step for step, _ in self.unread], [loss for _, loss in self.unread]
        self.unread = []
        for step, value in zip(steps, torch.stack(losses).tolist() if losses else [], strict=True):
            # Normalised over the whole optimizer step, so the losses of its micro-batches add up.
            if not math.isfinite(value):
                raise TrainerError(
                    "NON_FINITE_LOSS",
                    f"The loss of step {step} is {value}. Lower training.learning_rate or training.max_grad_norm, or add warmup_steps.",
                    "training.learning_rate",
                )
            self.meter.open_loss += value


@dataclass(frozen=True)
class EvaluationPlan:
    every: int | None  # steps; None: only before the first step and after the last one
    rows: int  # of the held-out ones, from the first


def plan_evaluations(settings: dict, rows, held_out, ranks: int) -> EvaluationPlan:
    """
    When to evaluate, and on how many of the held-out rows, so that all evaluations together take `eval_budget` of what training takes.
    Reckoned in tokens, of which a step takes three passes' worth (forward, and twice that backward) and an evaluation one. So it depends
    on nothing that differs between two runs of the same settings.
    """
    batches = math.ceil(len(rows) / (settings["per_device_train_batch_size"] * ranks))
    steps_of_epoch = math.ceil(batches / settings["gradient_accumulation_steps"])
    steps = settings["max_steps"] if settings["max_steps"] > 0 else math.ceil(settings["num_train_epochs"] * steps_of_epoch)
    keeps_best = settings["load_best_model_at_end"]
    every = settings["eval_steps"] or (max(1, steps // 10) if keeps_best else None)
    if settings["eval_budget"] == "all":
        return EvaluationPlan(every, len(held_out))
    evaluations = 2 + keeps_best + ((steps - 1) // every if every else 0)
    trained = steps / steps_of_epoch * rows.tokens().sum() / ranks
    return EvaluationPlan(every, rows_within_budget(held_out.tokens(), settings["eval_budget"] * 3 * trained / evaluations))


class Best:
    """
    The adapter's weights at the evaluation with the lowest held-out loss, and whether to stop because nothing gets better.

    patience: evaluations without a gain after which training stops; None: it does not. threshold: a gain is a loss that is lower by more
    than this. Both mean what they mean to transformers.EarlyStoppingCallback.
    """

    def __init__(self, model, patience: int | None, threshold: float):
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.patience, self.threshold = patience, threshold
        self.weights: dict[str, torch.Tensor] = {}

    def note(self, meter: Meter, step: int, loss: float) -> None:
        gain = float("inf") if meter.best is None else meter.best[1] - loss
        meter.evaluations_without_gain = 0 if gain > self.threshold else meter.evaluations_without_gain + 1
        if gain > 0:
            meter.best = [step, loss]
            self.weights = {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def is_enough(self, meter: Meter) -> bool:
        return self.patience is not None and meter.evaluations_without_gain >= self.patience

    def save(self, directory: Path) -> None:
        if self.weights:
            save_file(self.weights, directory / BEST)

    def load(self, directory: Path) -> None:
        if (directory / BEST).exists():
            self.weights = load_file(directory / BEST)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the best weights into the model."""
        for name, weight in self.weights.items():
            self.parameters[name].copy_(weight)


class Reporter(TrainerCallback):
    """
    Progress lines, evaluation during training, checkpoints, and the stop on SIGTERM.

    emit(line): appends to progress.jsonl. evaluate(): the loss on the evaluation rows, or None if there are none.
    best: remembers the best weights; None: the last ones are published. stop_wanted(): whether this process got SIGTERM. fingerprint: what a checkpoint must share with a run to continue it.
    changed_base: see changed_base.py; None for most runs. publish(step): writes what it takes to serve the checkpoint; on all processes.
    compute_type: stands in each checkpoint, so that a process on another kind of processor goes on in it. ranks: likewise, with how many
    processes the run began.
    """

    def __init__(
        self,
        trainer: LoraTrainer,
        directory: Path,
        emit,
        evaluate,
        eval_steps,
        best: Best | None,
        save_total_limit,
        stop_wanted,
        fingerprint,
        compute_type,
        ranks,
        changed_base,
        publish,
    ):
        self.trainer, self.directory, self.emit, self.evaluate, self.publish = trainer, directory, emit, evaluate, publish
        self.eval_steps, self.best, self.save_total_limit = eval_steps, best, save_total_limit
        self.stop_wanted, self.fingerprint, self.compute_type, self.changed_base = stop_wanted, fingerprint, compute_type, changed_base
        self.ranks = ranks
        self.stopped = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.last_time = time.monotonic()
        self.first_step = state.global_step
        self.first_tokens = self.last_tokens = self.trainer.meter.tokens_seen

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.meter.open_steps += 1
        last = state.global_step >= state.max_steps
        if last:
            control.should_log = True
            control.should_save = False  # no checkpoint of the last step: the adapter itself is saved right after it
        # All ranks must stop at the same step, or the others wait for ever in the next all-reduce.
        elif sum_over_ranks(self.stop_wanted()) > 0:
            self.stopped = control.should_log = control.should_save = control.should_training_stop = True
        # The last step's adapter is evaluated after training, as it is published. Here it is only to find out whether it is the best one.
        if self.best is not None if last else self.eval_steps and state.global_step % self.eval_steps == 0:
            self.evaluate_now(state.global_step, control)

    def evaluate_now(self, step: int, control) -> None:
        loss, meter = self.evaluate(), self.trainer.meter
        if loss is None:
            return
        loss = sum_over_ranks(loss) / sum_over_ranks(1)  # all ranks must find the same step to be the best one
        if not math.isfinite(loss):
            raise TrainerError(
                "NON_FINITE_LOSS", f"The held-out loss after step {step} is {loss}. Lower training.learning_rate or add warmup_steps.", "training.learning_rate"
            )
        meter.eval_history.append([step, loss])
        self.emit({"type": "eval", "step": step, "eval_loss": loss})
        if self.best is not None:
            self.best.note(meter, step, loss)
            if self.best.is_enough(meter):
                control.should_log = control.should_training_stop = True
                control.should_save = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        meter = self.trainer.meter
        if logs is None or "loss" not in logs or not meter.open_steps:
            return
        self.trainer.read_losses()
        ranks = sum_over_ranks(1)
        loss = sum_over_ranks(meter.open_loss) / ranks / meter.open_steps
        meter.open_loss, meter.open_steps = 0.0, 0
        meter.loss_history.append([state.global_step, loss])
        rewards = self.trainer.objective.means([sum_over_ranks(value) for value in meter.open_rewards]) if meter.open_rewards else {}
        meter.open_rewards = []
        now = time.monotonic()
        tokens = int(sum_over_ranks(meter.tokens_seen))
        seconds_a_step = (now - self.started) / (state.global_step - self.first_step)
        self.emit(
            {
                "type": "step",
                "step": state.global_step,
                "total_steps": state.max_steps,
                "epoch": round(state.epoch, 4),
                "loss": loss,
                "grad_norm": finite_or_none(logs.get("grad_norm")),
                "learning_rate": logs["learning_rate"],
                "tokens_per_second": round((meter.tokens_seen - self.last_tokens) * ranks / max(now - self.last_time, 1e-9), 1),
                "tokens_seen": tokens,
                "examples_seen": int(sum_over_ranks(meter.examples_seen)),
                "eta_seconds": round(seconds_a_step * (state.max_steps - state.global_step), 1),
                **rewards,
            }
        )
        self.last_time, self.last_tokens = now, meter.tokens_seen

    def on_save(self, args, state, control, **kwargs):
        """Makes a checkpoint of the temporary directory into which transformers has just written everything."""
        self.trainer.read_losses()
        meter = self.trainer.meter.of_all_ranks()  # waits for all ranks, so all have written their files
        partial = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.publish(state.global_step)
        if state.is_world_process_zero:
            if self.best is not None:
                self.best.save(partial)
            self.trainer.objective.save(partial)
            if self.changed_base is not None:
                self.changed_base.save(partial)
            about = {"step": state.global_step, "fingerprint": self.fingerprint, "compute_type": self.compute_type, "ranks": self.ranks}
            name = commit_checkpoint(partial, self.directory, about, asdict(meter))
            self.emit({"type": "checkpoint", "step": state.global_step, "path": f"{self.directory.name}/{name}"})
            for old in sorted(self.directory.glob("step-*"))[: -self.save_total_limit]:
                shutil.rmtree(old)
        elif state.is_local_process_zero:  # the random states of another machine's ranks, which nobody collects
            shutil.rmtree(partial, ignore_errors=True)

    def tokens_per_second(self) -> float:
        """Speed over the steps of this process, summed over all ranks. Time for checkpoints and evaluations is included."""
        return (self.trainer.meter.tokens_seen - self.first_tokens) * sum_over_ranks(1) / max(time.monotonic() - self.started, 1e-9)


def commit_checkpoint(partial: Path, directory: Path, about: dict, meter: dict) -> str:
    """Adds our state, then the manifest with every file's digest, then renames. Returns the checkpoint's name."""
    for unwanted in ("training_args.bin", "README.md"):  # a pickle of this process; an empty model card
        (partial / unwanted).unlink(missing_ok=True)
    (partial / METER).write_text(json.dumps(meter))
    files = []
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            path.chmod(0o644)  # safetensors makes files that only its own user reads; who stores them may be another one
            files.append({"path": str(path.relative_to(partial)), "size": path.stat().st_size, "sha256": digest(path)})
    with open(partial / MANIFEST, "w") as file:
        json.dump({"version": 1, **about, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    target = directory / f"step-{about['step']:08d}"
    if target.exists():  # an earlier process saved the same step of the same run
        shutil.rmtree(target)
    os.rename(partial, target)
    return target.name


def ranks_of(checkpoint: Path, otherwise: int) -> int:
    """With how many processes its run began. Older checkpoints do not say."""
    try:
        return json.loads((checkpoint / MANIFEST).read_text()).get("ranks", otherwise)
    except (OSError, ValueError):
        return otherwise


def share_steps(settings: dict, begun_with: int, ranks: int) -> dict:
    """
    The settings with which `ranks` processes make the steps of a run that began with another number of them: the same rows in each step, in
    fewer or more passes. Raises ValueError if they cannot be shared evenly.
    """
    size, passes = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    rows = size * passes * begun_with
    if rows % ranks:
        raise ValueError(f"its steps have {rows} rows, which {ranks} processes cannot share evenly")
    size = max(each for each in range(1, size + 1) if (rows // ranks) % each == 0)
    return settings | {"per_device_train_batch_size": size, "gradient_accumulation_steps": rows // ranks // size}


def check_checkpoint(path: Path, fingerprint: str) -> int:
    """Returns the step of a complete checkpoint of this run. Raises ValueError that says what is wrong with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"it is incomplete: {MANIFEST} cannot be read ({error})") from error
    for file in manifest["files"]:
        if not (path / file["path"]).is_file() or digest(path / file["path"]) != file["sha256"]:
            raise ValueError(f"{file['path']} is missing or does not match its digest")
    if manifest.get("fingerprint") != fingerprint:
        raise ValueError("it belongs to a run with another base, other data or other settings")
    return manifest["step"]


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sum_over_ranks(value):
    if not distributed.is_initialized():
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(float(value), device=device, dtype=torch.float64)
    distributed.all_reduce(total)
    return total.item()


def finite_or_none(value):
    return value if value is not None and math.isfinite(value) else None
