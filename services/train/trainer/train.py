"""
Trains one LoRA adapter with PEFT: a directory in, a directory out. It knows nothing of queues, object stores or clusters.

    python train.py DIR
    torchrun --nproc-per-node N train.py DIR

With torchrun each rank trains on its share of every batch, with the whole base or, with training.fsdp, a part of it (sharding.py).
Rank 0 writes all files, except that a failure is written by the first rank that meets one. On several machines each has its own DIR;
rank 0's gets the results.

In:
    DIR/spec.json       what to train; see spec.py
    DIR/base/           the base, a Hugging Face directory
    DIR/shards/         train-*.arrow and, if there are held-out rows, eval-*.arrow; see packing.py, and preferences.py for pairs
    DIR/pictures/       the files of the rows' and probes' pictures, named by their sha256 in hex; see pictures.py
    DIR/resume/         a complete checkpoint of the same run, optional
    DIR/init/           with init in spec.json: an adapter that was published here, with which training begins
    DIR/import/         with method import in spec.json: an adapter from elsewhere, instead of shards; see adopt.py

Out:
    DIR/progress.jsonl  a line for each phase, step, evaluation, checkpoint and warning, as it happens, and how far an evaluation is; during
                        training its modification time is that of the last forward pass
    DIR/checkpoints/    step-NNNNNNNN/, complete as soon as it has this name; checkpoint.json lists the digests
    DIR/published/      step-NNNNNNNN/ and step-NNNNNNNN.json: the adapter as it was at that checkpoint, as a server loads it, and its probes
    DIR/reference-*.partial   what dpo and kto know of the base so far, so that a killed process goes on there
    DIR/adapter/        what a server loads; see canonicalise.py
    DIR/adapter.json    the same of it as step-NNNNNNNN.json of a checkpoint, as soon as it is complete: it is evaluated afterwards
    DIR/result.json     last of all, whole or not at all

It computes in bf16 on a GPU and on a processor that does so natively, else in float32 (compute.py); result.json says which.

Exit code 0: trained. 75: stopped by SIGTERM after a checkpoint; start again to go on. 1: failed, result.json says why:

    SPEC_INVALID  LORA_FIELD_REFUSED  TRAINING_FIELD_REFUSED                            the spec
    NO_TARGET_MODULES  TARGET_MODULE_UNSUPPORTED  INIT_FROM_MISMATCH
    BASE_UNREADABLE  SHARD_INVALID  NO_SUPERVISED_TOKENS  RESUME_INVALID                the inputs
    BASE_CANNOT_SEE  PICTURE_UNREADABLE  QUANTIZATION_UNSUPPORTED
    PATTERN_TOO_COSTLY                                                                  the spec's expressions
    ADAPTER_CONFIG_INVALID  ADAPTER_FEATURE_UNSUPPORTED  ADAPTER_UNREADABLE             what is adopted
    ADAPTER_EMPTY  ADAPTER_DTYPE  ADAPTER_NAN  ADAPTER_ZERO  ADAPTER_TENSOR_UNKNOWN
    ADAPTER_TENSOR_MISSING  ADAPTER_MODULE_UNKNOWN  ADAPTER_BASE_MISMATCH  ADAPTER_SHAPE_MISMATCH
    PACKING_SELF_TEST_FAILED  ATTENTION_UNSUPPORTED  NON_FINITE_LOSS  ADAPTER_INVALID   the training
    DEVICE_MISSING  OUT_OF_MEMORY  DISK_FULL  INTERNAL                                  the machine, or a bug

A process may be killed at any time. Started again in the same directory, the trainer goes on from the newest complete
checkpoint. On a CPU the losses are then bit for bit those of a run that was not interrupted; with another number of ranks, up to rounding.

After the last step SIGTERM is ignored: the remaining work takes seconds, less than starting again from a checkpoint.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openmp
from spec import LORA_DEFAULTS, PREFERENCE_METHODS, TRAINING_DEFAULTS, TrainerError, read_spec

if TYPE_CHECKING:
    import torch
    from objectives import Objective

# Set before torch and transformers are imported. `train` imports them late: the import takes seconds, and a wrong spec is refused first.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
openmp.prepare()
# transformers and PEFT import it wherever they find it, which takes a second; quantised.py brings it back.
sys.modules.setdefault("bitsandbytes", None)  # ty: ignore[no-matching-overload]  None is how Python says that there is no such module
if "LOCAL_RANK" not in os.environ:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process, one GPU; more of them through torchrun
IS_WRITER = int(os.environ.get("RANK", "0")) == 0
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))

PREEMPTED = 75  # EX_TEMPFAIL
COUNT_EVERY_S = 2.0  # how often a phase that is counted says how far it is
# Settings that are not passed to transformers.Trainer. It does not know packed rows or LoRA+, and Loraline does evaluation and
# checkpoints itself.
OURS = (
    *("eval_steps", "eval_budget", "load_best_model_at_end", "early_stopping_patience", "early_stopping_threshold"),
    *("save_total_limit", "fsdp", "label_smoothing_factor", "neftune_noise_alpha", "loraplus_lr_ratio"),
)


# Values of lora.init_lora_weights; see changed_base.py.
CHANGES_THE_BASE = ("pissa", "pissa_niter_4", "pissa_niter_16", "olora")


def main(directory: Path) -> int:
    attempt = Attempt(directory)
    try:
        train(attempt)
        attempt.result["status"] = "succeeded"
        code = 0
    except Preempted:
        attempt.result["status"] = "preempted"
        code = PREEMPTED
    except Exception as error:
        traceback.print_exc()
        shutil.rmtree(directory / "checkpoints/.partial", ignore_errors=True)  # also makes room for result.json
        attempt.result |= {"status": "failed", "error": explain(error, attempt.memory_needed).as_dict()}
        code = 1
    attempt.write_result()
    return code


class Preempted(Exception):
    pass


class Attempt:
    """The directory's outgoing side: progress lines, phases, the result; and whether SIGTERM came."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.stop_wanted = False
        self.any_stop: Callable[[bool], bool] = lambda wanted: wanted  # processes that share a base ask each other, and stop at the same place
        self.last_sign = 0.0
        self.memory_needed = ""  # in words, for whom runs out of it
        signal.signal(signal.SIGTERM, self.on_sigterm)
        if IS_WRITER:  # only rank 0 deletes old output, because other ranks may start later
            for name in ("result.json", "adapter.json"):
                (directory / name).unlink(missing_ok=True)
        name = directory / "progress.jsonl" if IS_WRITER else os.devnull
        self.progress = open(name, "ab", buffering=0)  # noqa: SIM115  open until write_result
        self.result: dict[str, Any] = {
            "status": "failed",
            "error": None,
            "steps": 0,
            "total_steps": 0,
            "train_loss": None,
            "tokens_seen": 0,
            "train_tokens_per_second": None,
            "loss_history": [],
            "eval_history": [],
            "evaluation": None,
            "probes": [],
            "twins": [],
            "adapter": None,
            "environment": None,
            "phases": {},
        }

    def on_sigterm(self, signum, frame):
        self.stop_wanted = True

    def emit(self, line: dict) -> None:
        """One write for one line, so that a reader or a kill never sees half of one (the next writer starts a new line)."""
        self.progress.write((json.dumps({"type": line["type"], "time": time.time(), **line}) + "\n").encode())

    def sign_of_life(self) -> None:
        """Shows that the process is alive, through the modification time of progress.jsonl. Steps may be long and rarely logged."""
        if IS_WRITER and time.monotonic() - self.last_sign > 1:
            self.last_sign = time.monotonic()
            os.utime(self.progress.fileno())

    def counted(self, phase: str, items: Sequence) -> Iterator:
        """Iterates over the items, and says every COUNT_EVERY_S seconds how many are done. What takes less is not told."""
        started = told = time.monotonic()
        for done, item in enumerate(items):
            self.sign_of_life()
            now = time.monotonic()
            if done and now - told >= COUNT_EVERY_S:
                told = now
                eta = (now - started) / done * (len(items) - done)
                self.emit({"type": "count", "phase": phase, "done": done, "total": len(items), "eta_seconds": round(eta, 1)})
            yield item

    @contextmanager
    def phase(self, name: str):
        """Names the current phase in progress.jsonl. A phase may happen more than once; its seconds are summed."""
        if name != "save" and not self.result["steps"] and self.any_stop(self.stop_wanted):
            raise Preempted
        started = time.monotonic()
        self.emit({"type": "phase", "phase": name, "state": "start"})
        try:
            yield
        finally:
            self.emit({"type": "phase", "phase": name, "state": "end"})
            phases = self.result["phases"]
            phases[name] = round(phases.get(name, 0) + time.monotonic() - started, 3)

    def write_result(self) -> None:
        """Writes result.json. If several ranks fail, the first one's result stays: the others only know that a rank disappeared."""
        failed = self.result["status"] == "failed"
        if IS_WRITER or failed:
            partial = self.directory / f".result.json.partial-{os.getpid()}"
            partial.write_text(json.dumps(self.result))
            if failed:
                with suppress(FileExistsError):
                    os.link(partial, self.directory / "result.json")
                partial.unlink()
            else:
                os.replace(partial, self.directory / "result.json")
        self.progress.close()


def train(attempt: Attempt) -> None:
    spec = read_spec(attempt.directory / "spec.json")
    method = spec["method"]["type"]
    if method not in METHODS:
        raise TrainerError("SPEC_INVALID", f"method.type must be one of {', '.join(METHODS)}, not {method!r}.", "method.type")
    METHODS[method](attempt, spec)


def import_adapter(attempt: Attempt, spec: dict) -> None:
    import adopt

    adopt.adopt(attempt, spec, load_base, time_limit)


def train_adapter(attempt: Attempt, spec: dict) -> None:
    """Supervised training, or from preferences: what is learned is the `objective`."""
    directory = attempt.directory
    lora, settings = spec["lora"], spec["training"]
    (directory / "checkpoints/.partial").mkdir(parents=True, exist_ok=True)

    with attempt.phase("load_base"):
        if settings["full_determinism"]:  # read when the first product runs on a GPU, before transformers would set it
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        import canonicalise
        import changed_base
        import compute
        import language_model
        import loop
        import lora_linear
        import memory
        import packing
        import pictures
        import probes
        import quantised
        import torch
        from transformers import PrinterCallback, TrainingArguments

        on_gpu = spec["device"] != "cpu" and torch.cuda.is_available()
        if not on_gpu:
            openmp.watch()
        if spec["device"] == "cuda" and not on_gpu:
            raise TrainerError(
                "DEVICE_MISSING",
                "A GPU was asked for, and torch finds none. Is the driver there, and does the container get the device? On a CPU it"
                " would take days; to train there anyway, ask for device cpu.",
            )
        ranks, compute_type = WORLD_SIZE, compute.BF16 if on_gpu else compute.native_type()
        sharded = bool(settings["fsdp"]) and WORLD_SIZE > 1
        checkpoint = newest_checkpoint(attempt, spec)
        if checkpoint is not None:  # goes on as it began, so that all steps are of one kind
            manifest = json.loads((checkpoint / loop.MANIFEST).read_text())
            ranks, compute_type = manifest.get("ranks", WORLD_SIZE), manifest.get("compute_type", compute.BF16)
        fingerprint = fingerprint_of(spec, directory / "shards", ranks)
        here = loop.share_steps(settings, ranks, WORLD_SIZE)
        begun_in = getattr(torch, compute_type)
        if sharded and not settings["bf16"]:
            compute_type = compute.FP32  # parts of weights do not change their type before the first step, as whole ones do
        quantization = spec["quantization"]
        needed = partial(memory.in_words, directory / "base", rank=lora["r"], dropout=lora["lora_dropout"] > 0)
        attempt.memory_needed = needed(tokens=None)
        model = load_base(directory, compute_type, sharded, f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else None, quantization)
        if sharded:
            attempt.any_stop = lambda wanted: loop.sum_over_ranks(wanted) > 0
        vocabulary = model.get_input_embeddings().num_embeddings
        objective = objective_of(spec)
        objective.counted = attempt.counted
        probes.find_pictures(spec, pictures.Album(directory / "base", directory / "pictures"))
        rows = objective.read(directory / "shards", "train", vocabulary)
        held_out = objective.read(directory / "shards", "eval", vocabulary)
        if rows.dropped:
            attempt.emit({"type": "warning", "code": "ROWS_WITHOUT_LABELS", "message": f"{rows.dropped} rows have no supervised token and are left out."})
        attempt.memory_needed = needed(tokens=packing.largest_batch(rows, settings["per_device_train_batch_size"])) if len(rows) else ""
        if not rows.supervised_tokens:
            raise TrainerError("NO_SUPERVISED_TOKENS", "No token of the training shards is supervised (all labels are -100): there is nothing to learn.")
        if settings["load_best_model_at_end"] and not len(held_out):
            message = "training.load_best_model_at_end needs held-out rows to find the best step, and none were held out of so few. Give a validation dataset, or remove it."
            raise TrainerError("SPEC_INVALID", message, "training.load_best_model_at_end")

        with time_limit("applying lora's patterns to the base"):
            model = add_lora(model, lora, settings["seed"])
        if begun_in != getattr(torch, compute_type):
            with torch.no_grad():
                for parameter in (each for each in model.parameters() if each.requires_grad):
                    parameter.copy_(parameter.to(begun_in))  # PEFT draws it in the type of the base
        lora_linear.use(model)
        if (missed := language_model.missed_experts(model)) is not None:
            attempt.emit({"type": "warning", "code": "EXPERTS_NOT_ADAPTED", "message": missed})
        changed = None
        if lora["init_lora_weights"] in CHANGES_THE_BASE:
            changed = changed_base.ChangedBase(model, lora["init_lora_weights"], checkpoint, attempt.sign_of_life)
        plan = loop.plan_evaluations(settings, rows, held_out, ranks)
        evaluated = held_out.first(plan.rows)

        if spec["init"] is not None:
            canonicalise.start_from(model, directory / "init", spec["init"]["name"])
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            if not sharded:
                model.to("cuda")
        language_model.text_config(model).use_cache = False
        attempt.result["environment"] = compute.describe(compute_type, settings["seed"], on_gpu, quantization)

    with attempt.phase("self_test"), nullcontext() if changed is None else changed.in_training():
        # With a GPU the self-test uses whole rows. On a CPU it uses a few sequences of each, because it takes time from training.
        packing.prove_packing(model, rows, here["per_device_train_batch_size"], max_rows=8, max_tokens=65_536 if on_gpu else 256)

    # The base's answers and evaluation are recorded before training: after the last step every second delays the result.
    as_stored = lambda: quantised.as_stored(model, directory / "base")  # noqa: E731
    with attempt.phase("evaluate"), as_stored():
        base_measured = objective.measure_base(model, evaluated)
    with attempt.phase("probe"), as_stored(), model.disable_adapter():
        base_probes = probes.record(model, spec)

    served = [(parameter, parameter.dtype) for parameter in model.parameters()]
    in_bf16 = settings["bf16"] and compute_type == compute.BF16
    if not in_bf16:
        convert(model.parameters(), torch.float32)
    if settings["gradient_checkpointing"]:
        model.enable_input_require_grads()
    given: dict[str, Any] = {name: value for name, value in here.items() if name not in OURS and value is not None} | {"bf16": in_bf16}
    trainer = loop.LoraTrainer(
        objective=objective,
        loraplus_lr_ratio=settings["loraplus_lr_ratio"],
        neftune_noise_alpha=settings["neftune_noise_alpha"],
        model=model,
        args=TrainingArguments(
            output_dir=str(directory / "checkpoints/.partial"),
            **given,
            gradient_checkpointing_kwargs={"use_reentrant": False} if settings["gradient_checkpointing"] else None,
            use_cpu=not on_gpu,
            ddp_backend=None if on_gpu or WORLD_SIZE == 1 else "gloo",
            remove_unused_columns=False,  # the collator makes its own
            logging_nan_inf_filter=False,  # or a loss of NaN would be logged as 0
            accelerator_config={"even_batches": False},  # loop.Rounds are even
            save_on_each_node=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=on_gpu,
            ddp_find_unused_parameters=False,
        ),
        train_dataset=rows,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.meter, trainer.sign_of_life = loop.Meter(), attempt.sign_of_life

    @contextmanager
    def as_served():
        """The model in the middle of its training, without what only training has: autocast, another type of the base, a changed base."""
        wrapper = model.__dict__.pop("forward", None)  # accelerate's
        if changed is not None:
            changed.end()
        for parameter, dtype in served:
            if not parameter.requires_grad:
                convert([parameter], dtype)
        try:
            with as_stored():
                yield
        finally:
            if not in_bf16:
                convert(model.parameters(), torch.float32)
            if changed is not None:
                changed.begin()
            if wrapper is not None:
                model.forward = wrapper

    def write_published(folder: Path, tensors: dict, found: list[dict]) -> dict:
        """Writes an adapter into the folder, and beside it `<folder>.json`, which tells what a server needs to prove it. Returns the adapter's description."""
        adapter = canonicalise.write_adapter(folder, tensors, spec, language_model.text_config(model).num_hidden_layers)
        partial = folder.with_name(f".{folder.name}.json.partial")
        partial.write_text(json.dumps({"adapter": adapter, "probes": found, "environment": attempt.result["environment"]}))
        os.replace(partial, folder.with_name(f"{folder.name}.json"))
        return adapter

    def held_out_loss() -> float:
        with as_stored():
            return objective.held_out_loss(base_measured, objective.measure(model, evaluated))

    def publish_checkpoint(step: int) -> None:
        """Costs a pass over the probes, less than a step. Whoever cannot be served yet, as before anything is learned, is left out."""
        if not IS_WRITER and not sharded:
            return
        folder, name = directory / "published", f"step-{step:08d}"
        folder.mkdir(exist_ok=True)
        try:
            tensors = canonicalise.canonical_tensors(model, changed)
        except TrainerError as error:
            attempt.emit({"type": "warning", "code": "CHECKPOINT_NOT_SERVABLE", "message": f"The checkpoint of step {step} cannot be asked: {error}"})
            return
        with as_served(), canonicalise.as_published(model, tensors):
            found = probes.compare(spec, base_probes, probes.record(model, spec))
        if not IS_WRITER:
            return
        write_published(folder / name, tensors, found)
        for old in sorted(folder.glob("step-*.json"))[: -settings["save_total_limit"]]:
            old.unlink()
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)

    best = loop.Best(model, settings["early_stopping_patience"], settings["early_stopping_threshold"]) if settings["load_best_model_at_end"] else None
    reporter = loop.Reporter(
        trainer=trainer,
        directory=directory / "checkpoints",
        emit=attempt.emit,
        evaluate=lambda: held_out_loss() if len(evaluated) else None,
        eval_steps=plan.every,
        best=best,
        save_total_limit=settings["save_total_limit"],
        stop_wanted=lambda: attempt.stop_wanted,
        fingerprint=fingerprint,
        compute_type=compute_type,
        ranks=ranks,
        changed_base=changed,
        publish=publish_checkpoint,
    )
    trainer.add_callback(reporter)
    if checkpoint is not None:
        trainer.meter = loop.Meter(**json.loads((checkpoint / loop.METER).read_text())).of_this_rank()
        if best is not None:
            best.load(checkpoint)

    if objective.has_reference:
        with attempt.phase("reference"):
            key = hashlib.sha256(f"{fingerprint} {compute_type}".encode()).hexdigest()
            as_in_training = lambda: torch.autocast(model.device.type, torch.bfloat16, enabled=in_bf16)  # noqa: E731
            if not objective.prepare(model, rows, directory, key, checkpoint, here["per_device_train_batch_size"], as_in_training, attempt):
                raise Preempted

    if changed is not None:
        changed.begin()
    with attempt.phase("train"):
        meter = trainer.meter
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            meter = meter.of_all_ranks()  # not called after a failure, when other ranks may no longer answer
        finally:
            attempt.result |= {
                "steps": trainer.state.global_step,
                "total_steps": trainer.state.max_steps,
                "train_loss": meter.loss_history[-1][1] if meter.loss_history else None,
                "tokens_seen": meter.tokens_seen,
                "loss_history": meter.loss_history,
                "eval_history": meter.eval_history,
            }
        attempt.result["train_tokens_per_second"] = round(reporter.tokens_per_second(), 1)
        if reporter.stopped:
            raise Preempted
        published_step, stopped_early = trainer.state.global_step, trainer.state.global_step < trainer.state.max_steps
        if best is not None and meter.best is not None:
            best.restore()
            published_step = meter.best[0]
    if not IS_WRITER and not sharded:
        return

    with attempt.phase("save"):
        # From here on the model is as it will be served: without autocast, with the published adapter.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if changed is not None:
            changed.end()
        for parameter, dtype in served:
            convert([parameter], dtype)
        tensors = canonicalise.canonical_tensors(model, changed)
        canonicalise.load_published(model, tensors)

    with attempt.phase("probe"), as_stored():
        attempt.result["probes"] = probes.compare(spec, base_probes, probes.record(model, spec))

    if IS_WRITER:
        with attempt.phase("save"):
            attempt.result["adapter"] = write_published(directory / "adapter", tensors, attempt.result["probes"])
        if not spec["twins"]:  # else it lacks what their engines prove it by
            attempt.emit({"type": "adapter"})

    with attempt.phase("evaluate"), as_stored():
        if len(evaluated):
            measured = objective.measure(model, evaluated)
            found = objective.evaluation(base_measured, measured)
            check_finite(found)
            if best is None:  # else the curve has the last step already, and what is published may be of an earlier one
                loss = objective.held_out_loss(base_measured, measured)
                attempt.emit({"type": "eval", "step": published_step, "eval_loss": loss})
                attempt.result["eval_history"].append([published_step, loss])
            attempt.result["evaluation"] = found | {
                "rows": len(evaluated),
                "held_out_rows": len(held_out),
                "rows_digest": evaluated.digest(),
                "published_step": published_step,
                "stopped_early": stopped_early,
            }

    if spec["twins"] and not sharded:  # last, since the model keeps their weights
        with attempt.phase("probe"):
            attempt.result["twins"] = probes.on_twins(model, spec, directory)


def check_finite(evaluation: dict) -> None:
    """JSON has no NaN, and an adapter that gives one is of no use. Raises NON_FINITE_LOSS."""
    for name, value in evaluation.items():
        if isinstance(value, dict):
            check_finite(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise TrainerError(
                "NON_FINITE_LOSS", f"On the held-out rows {name} is {value}: the training diverged. Lower training.learning_rate.", "training.learning_rate"
            )


def convert(parameters: Iterable["torch.nn.Parameter"], dtype: "torch.dtype") -> None:
    """Other than model.to(dtype), which would also convert buffers, whose types must stay. So must packed weights."""
    for parameter in parameters:
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def objective_of(spec: dict) -> "Objective":
    import objectives
    import preferences

    if spec["method"]["type"] in PREFERENCE_METHODS:
        return preferences.Preferences(spec["method"], from_version=spec["init"] is not None)
    return objectives.Supervised(spec["training"]["label_smoothing_factor"])


class WarmBase:
    """A base that was loaded before the run began; see warm.py. Holds only as long as the folder's files are the ones that were read."""

    def __init__(self, folder: Path, compute_type: str):
        self.folder, self.compute_type = folder.resolve(), compute_type
        self.files = self.files_now()
        self.model = read_base(self.folder, compute_type)

    def files_now(self) -> list:
        stats = [(path.name, path.stat()) for path in sorted(self.folder.iterdir())]
        return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def is_current(self) -> bool:
        return self.folder.is_dir() and self.files_now() == self.files

    def suits(self, folder: Path, compute_type: str) -> bool:
        return compute_type == self.compute_type and folder.resolve() == self.folder and self.is_current()


warm_base: WarmBase | None = None  # set in a process that was forked by warm.py


def load_base(directory: Path, compute_type: str, sharded: bool = False, device: str | None = None, quantization: str | None = None):
    """
    The base in `compute_type`, "bfloat16" or "float32"; sharded: shared out among all processes; with `quantization`: its linear layers packed.
    device: where its weights are read to; None: the CPU's memory. Raises BASE_UNREADABLE, QUANTIZATION_UNSUPPORTED.
    """
    if quantization is not None:
        return read_base(directory / "base", compute_type, device=device, quantization=quantization)
    if warm_base is not None and warm_base.suits(directory / "base", compute_type):
        return warm_base.model
    return read_base(directory / "base", compute_type, sharded, device)


def read_base(folder: Path, compute_type: str, sharded: bool = False, device: str | None = None, quantization: str | None = None):
    import attention
    import language_model
    import quantised
    import sharding
    import torch
    import unpack
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        if quantization is not None:
            model = quantised.load(folder, quantization, getattr(torch, compute_type), device or "cpu", attn_implementation="by_sequence")
        elif sharded:
            model = sharding.load(folder, getattr(torch, compute_type), WORLD_SIZE, attn_implementation="by_sequence", local_files_only=True)
        elif (packed := unpack.packing_of(folder)) is not None:
            model = unpack.load(folder, packed, getattr(torch, compute_type), attn_implementation="by_sequence")
        else:
            load = language_model.auto_class_of(folder).from_pretrained
            placed: dict[str, Any] = {} if device is None else {"device_map": {"": device}}
            model = load(folder, dtype=getattr(torch, compute_type), attn_implementation="by_sequence", local_files_only=True, **placed)
        attention.use(model, attention.NAME)
        attention.recur_by_sequence(model)
        return model
    except TrainerError:
        raise
    except Exception as error:
        raise TrainerError("BASE_UNREADABLE", f"base/ is not a model that transformers can load: {error}", "base") from error


@contextmanager
def time_limit(doing: str, seconds: int = 30):
    """
    Limits the time of regular expressions from users, some of which would never end. A timer's signal can interrupt a match,
    because Python checks for signals while it matches. Raises PATTERN_TOO_COSTLY.
    """

    def on_alarm(signum, frame):
        raise TrainerError(
            "PATTERN_TOO_COSTLY",
            f"{doing} took longer than {seconds} s: an expression in it may be tried in too many ways. Give lists of names.",
            "lora.target_modules",
        )

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def add_lora(model, lora: dict, seed: int):
    """The PEFT model. Raises NO_TARGET_MODULES or TARGET_MODULE_UNSUPPORTED, naming what the base does have."""
    import language_model
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    linear, prefix = language_model.linear_modules(model), language_model.prefix_of(model)
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    param = "lora.target_modules"
    exist = f"Names in this base: {', '.join(known)}."

    target = lora["target_modules"]
    if target == "all-linear":
        target = known
    elif isinstance(target, str):
        try:
            re.compile(target)
        except re.error as error:
            raise TrainerError("NO_TARGET_MODULES", f"{param} {target!r} is not a regular expression: {error}. {exist}", param) from error
        if target in known:  # one name
            target = [target]
    if not isinstance(target, str):
        names = [name for name, _ in model.named_modules() if name.startswith(prefix)]
        unknown = [each for each in target if not any(name == each or name.endswith(f".{each}") for name in names)]
        if unknown or not target:
            raise TrainerError(
                "NO_TARGET_MODULES", f"{param}: nothing in the base is called {', '.join(map(repr, unknown)) or '(an empty list)'}. {exist}", param
            )

    if lora["init_lora_weights"] in CHANGES_THE_BASE:
        lora = lora | {"init_lora_weights": True}  # begun anew when it stands; see changed_base.py
    chosen: dict[str, Any] = {name: value for name, value in lora.items() if value is not None} | {"target_modules": target}
    if (excluded := language_model.outside(prefix, chosen.get("exclude_modules"))) is not None:
        chosen["exclude_modules"] = excluded
    torch.manual_seed(seed)  # lora_A is drawn here
    try:
        config = LoraConfig(task_type="CAUSAL_LM", **chosen)
        model = get_peft_model(model, config)
    except re.error as error:
        raise TrainerError("NO_TARGET_MODULES", f"lora: not a regular expression: {error}. {exist}", param) from error
    except (ValueError, TypeError) as error:
        if re.search("arget modules|No modules were targeted|All modules were excluded", str(error)):
            raise TrainerError("NO_TARGET_MODULES", f"{param} matches nothing: {error} {exist}", param) from error
        if "is not supported" in str(error):
            raise TrainerError("TARGET_MODULE_UNSUPPORTED", f"{param}: {error} {exist}", param) from error
        raise TrainerError("SPEC_INVALID", f"lora: PEFT refuses this: {error}", "lora") from error

    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and not (isinstance(module.base_layer, torch.nn.Linear) and name in linear):
            raise TrainerError(
                "TARGET_MODULE_UNSUPPORTED", f"{param}: {name} is not a linear layer inside the model, so vLLM cannot serve an adapter on it. {exist}", param
            )
    refuse_what_names_nothing(model.get_base_model(), lora, exist)
    return model


def refuse_what_names_nothing(base, lora: dict, exist: str) -> None:
    """PEFT leaves aside what it does not find, and the adapter would be another one than was asked for. `base`: with its adapter. Raises NO_TARGET_MODULES."""
    import language_model
    from peft.tuners.lora import LoraLayer

    def refuse(field: str, what: object, why: str) -> None:
        raise TrainerError("NO_TARGET_MODULES", f"lora.{field}: {what!r} {why}. Correct or remove it. {exist}", f"lora.{field}")

    names = [name for name, _ in base.named_modules()]
    adapted = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in lora[field] or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):  # as peft.utils.get_pattern_key
                refuse(field, pattern, "is the name of no module that gets an adapter")
    excluded = lora["exclude_modules"] or []
    matches = [(excluded, re.compile(excluded))] if isinstance(excluded, str) else [(each, re.compile(rf"(.*\.)?{re.escape(each)}")) for each in excluded]
    for what, expression in matches:
        if not any(expression.fullmatch(name) for name in names):
            refuse("exclude_modules", what, "is the name of nothing in the base")
    layers, count = lora["layers_to_transform"], language_model.text_config(base).num_hidden_layers
    for layer in [] if layers is None else [layers] if isinstance(layers, int) else layers:
        if layer >= count:
            refuse("layers_to_transform", layer, f"is no layer of the base, whose {count} layers are counted from 0")


def newest_checkpoint(attempt: Attempt, spec: dict) -> Path | None:
    """The complete checkpoint with the highest step, of resume/ and of what an earlier process left in checkpoints/."""
    import loop

    def check_checkpoint(path: Path) -> int:
        """Its step. Raises ValueError"""
        ranks = loop.ranks_of(path, WORLD_SIZE)
        step = loop.check_checkpoint(path, fingerprint_of(spec, attempt.directory / "shards", ranks))
        loop.share_steps(spec["training"], ranks, WORLD_SIZE)
        return step

    found = {}
    given = attempt.directory / "resume"
    if given.exists():
        try:
            found[check_checkpoint(given)] = given
        except ValueError as error:
            raise TrainerError("RESUME_INVALID", f"resume/ cannot be continued: {error}. Start without it, or from another checkpoint.", "resume") from error
    for path in (attempt.directory / "checkpoints").glob("step-*"):
        try:
            found.setdefault(check_checkpoint(path), path)
        except ValueError as error:
            attempt.emit({"type": "warning", "code": "CHECKPOINT_IGNORED", "message": f"checkpoints/{path.name} is left aside: {error}."})
    for leftover in (attempt.directory / "checkpoints/.partial").glob("*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return found[max(found)] if found else None


# The fields that existed when fingerprints were added to checkpoints. A later field counts only if it differs from its default,
# so that a run can still resume from its checkpoint after an upgrade of the trainer adds a field.
FIRST_FIELDS = {
    "lora": (
        *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "layers_to_transform"),
        *("layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights"),
    ),
    "training": (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "learning_rate"),
        *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "logging_steps", "save_steps"),
        *("save_total_limit", "eval_steps", "gradient_checkpointing", "seed", "bf16"),
    ),
}


def fingerprint_of(spec: dict, shards: Path, ranks: int = 1) -> str:
    """
    Returns a hash of everything that changes the training, so that a checkpoint is never continued with other settings. ranks: with so many
    processes it began, which decides how many rows a step has.
    """
    deciding = {"base": spec["base"]["digest"]}
    if spec["init"] is not None:
        deciding["init"] = spec["init"]["digest"]
    for section, defaults in (("lora", LORA_DEFAULTS), ("training", TRAINING_DEFAULTS)):
        fields = spec[section].items()
        deciding[section] = {name: value for name, value in fields if name in FIRST_FIELDS[section] or value != defaults[name]}
    if spec["method"]["type"] in PREFERENCE_METHODS:
        deciding["method"] = spec["method"]
    if spec["quantization"] is not None:
        deciding["quantization"] = spec["quantization"]
    if ranks > 1:
        deciding["ranks"] = ranks
    files = [f"{path.name} {path.stat().st_size}" for path in sorted(shards.glob("train-*.arrow"))]
    return hashlib.sha256(json.dumps([deciding, files], sort_keys=True).encode()).hexdigest()


def explain(error: Exception, memory_needed: str = "") -> TrainerError:
    """Turns any exception into a TrainerError with a stable code. memory_needed: a sentence for whom runs out of memory."""
    if isinstance(error, TrainerError):
        return error
    text = str(error)
    # torch and safetensors report a failed write with exceptions of their own.
    words = f"{text} {error.__context__}"
    if getattr(error, "errno", None) == errno.ENOSPC or re.search("No space left|PytorchStreamWriter|iostream error|unexpected pos", words):
        return TrainerError(
            "DISK_FULL", f"The disk is full: {text}. A checkpoint needs about 12 bytes for each trained parameter; free some space and start again."
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or re.search("not enough memory|can't allocate memory", text):
        message = "Out of memory. Lower training.per_device_train_batch_size or tokenize.max_length, set training.gradient_checkpointing, or hold the base in fewer bits with quantization."
        return TrainerError("OUT_OF_MEMORY", f"{message}{memory_needed} ({text})", "training.per_device_train_batch_size")
    return TrainerError("INTERNAL", f"{type(error).__name__}: {text}")


# The function for each method.type of the run spec. A test compares the types with those of the contracts.
METHODS = {"supervised": train_adapter, "import": import_adapter} | dict.fromkeys(PREFERENCE_METHODS, train_adapter)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python train.py DIR (see the top of this file for what DIR holds)")
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # All files are written. With several ranks, torch's threads sometimes abort the process while Python shuts down ("terminate
    # called without an active exception"), and a run that succeeded would look failed. So Python's shutdown is skipped.
    os._exit(code)
