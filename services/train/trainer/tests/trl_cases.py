"""
What this trainer, TRL's, transformers' own and LLaMA-Factory's are compared on: the same tokens in the same order, the same initial A, float32, 50 steps. Their losses
and margins stand in trl_curves.json. `python tests/bench/beside_trl.py` makes it, with TRL in an environment of its own.
"""

from pathlib import Path
from unittest.mock import patch

from conftest import Directory, make_pairs, make_rows

STEPS = 50
# Name to (our method, the other trainer as trl_curve.py names it, its arguments).
CASES: dict[str, tuple[dict, str, dict]] = {
    "supervised": ({"type": "supervised"}, "SFT", {}),
    "supervised-packed": ({"type": "supervised"}, "SFT", {}),
    "seq2seq": ({"type": "supervised"}, "Seq2Seq", {}),
    "seq2seq-packed": ({"type": "supervised"}, "Seq2Seq", {}),
    "llama-factory": ({"type": "supervised"}, "LLaMA-Factory", {}),
    "dpo": ({"type": "dpo"}, "DPO", {}),
    "dpo-hinge": ({"type": "dpo", "loss_type": "hinge", "beta": 0.2}, "DPO", {"loss_type": ["hinge"], "beta": 0.2}),
    "dpo-ipo": ({"type": "dpo", "loss_type": "ipo"}, "DPO", {"loss_type": ["ipo"]}),
    "dpo-robust": ({"type": "dpo", "loss_type": "robust", "label_smoothing": 0.1}, "DPO", {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "dpo-sft": ({"type": "dpo", "sft_weight": 0.5}, "DPO", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    "orpo": ({"type": "orpo"}, "ORPO", {}),
    "simpo": ({"type": "simpo"}, "CPO", {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0}),
    "simpo-cpo": (
        {"type": "simpo", "beta": 1, "simpo_gamma": 0.3, "cpo_alpha": 1},
        "CPO",
        {"loss_type": "simpo", "beta": 1.0, "simpo_gamma": 0.3, "cpo_alpha": 1.0},
    ),
    "kto": ({"type": "kto"}, "KTO", {}),
    "kto-weights": ({"type": "kto", "desirable_weight": 1.2, "undesirable_weight": 0.7}, "KTO", {"desirable_weight": 1.2, "undesirable_weight": 0.7}),
}


def directory_of(name: str, path: Path, base: Path) -> Directory:
    """A folder for the trainer in which one of TRL's batches is a packed row (4 pairs, or 8 answers), or 4 rows that are not packed."""
    method = CASES[name][0]
    packed = name not in ("supervised", "seq2seq", "llama-factory")

    def rows_of(count: int, seed: int, sequences: int):
        if method["type"] == "supervised":
            return make_rows(count, seed=seed, packed=sequences)
        return make_pairs(count, seed=seed, packed=sequences, unpaired=method["type"] == "kto")

    return Directory(
        path,
        base,
        rows=rows_of(STEPS, 11, 4) if packed else rows_of(4 * STEPS, 11, 1),
        held_out=rows_of(4, 12, 1),
        method=method,
        lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        training={"per_device_train_batch_size": 1 if packed else 4, "num_train_epochs": 1, "learning_rate": 0.005, "save_steps": 100, "bf16": False},
    )


def run_in_order(directory: Directory) -> list[dict]:
    """Trains on the rows in their order, and as on a processor without bf16, where A is not rounded. Returns the progress lines of the steps."""
    import compute
    import loop
    from torch.utils.data import SequentialSampler

    in_order = patch.object(loop.LoraTrainer, "_get_train_sampler", lambda self, rows=None: SequentialSampler(self.train_dataset))
    with in_order, patch.object(compute, "native_type", lambda: compute.FP32):
        assert directory.run() == 0, directory.result["error"]
    return directory.lines("step")
