"""
PiSSA and OLoRA: the adapter begins with a part of each weight W of the base, B0 x A0, and training goes on from W - s x B0 x A0, with s
the scaling. What was learned is s x (B x A - B0 x A0) on the base as it is served. That is exactly a LoRA of rank 2 r:

    s x (B x A - B0 x A0)  =  s x [B - B0, B0] x [A; A - A0]

In this form nothing large cancels out, so rounding to bf16 costs no more than with any other adapter. The base is changed during training
only: what is measured before and after it is measured on the base as it is served, with what is published.
"""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from canonicalise import ADAPTER, lora_layers, weight_of
from safetensors.torch import load_file, save_file

INITIAL = "initial.safetensors"


class ChangedBase:
    """initial: the A0 [r, in] and B0 [out, r] of each adapted module, in float32 on the CPU."""

    def __init__(self, model, kind: str, checkpoint: Path | None, sign_of_life: Callable[[], None]):
        """
        Begins the adapter as `kind` says, by PEFT's own functions; a run that goes on takes what its checkpoint has, because another machine
        would find it a little differently.
        """
        self.layers = lora_layers(model)
        self.initial: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.served: dict[str, torch.Tensor] = {}
        known = {} if checkpoint is None else load_file(checkpoint / INITIAL)
        for name, layer in self.layers.items():
            sign_of_life()
            if known:
                self.initial[name] = known[f"{name}.A"], known[f"{name}.B"]
                for part, value in zip(("lora_A", "lora_B"), self.initial[name], strict=True):
                    weight_of(getattr(layer, part)[ADAPTER]).data.copy_(value)
                continue
            base: Any = layer.get_base_layer()
            served = base.weight.data
            base.weight.data = served.clone()  # PEFT changes it, in place or not
            if kind == "olora":
                layer.olora_init(ADAPTER)
            else:
                layer.pissa_init(ADAPTER, kind)
            base.weight.data = served
            a, b = (weight_of(getattr(layer, part)[ADAPTER]) for part in ("lora_A", "lora_B"))
            a.data, b.data = a.data.contiguous(), b.data.contiguous()
            self.initial[name] = a.detach().float().cpu().clone(), b.detach().float().cpu().clone()

    @torch.no_grad()
    def begin(self) -> None:
        """Takes the adapter's beginning out of the base, for training."""
        for name, layer in self.layers.items():
            base: Any = layer.get_base_layer()
            weight = base.weight
            a, b = (part.to(weight.device) for part in self.initial[name])
            self.served[name] = weight.data
            weight.data = (weight.data.float() - layer.scaling[ADAPTER] * b @ a).to(weight.dtype)

    @torch.no_grad()
    def end(self) -> None:
        """Puts the base back as it is served."""
        for name, weight in self.served.items():
            base: Any = self.layers[name].get_base_layer()
            base.weight.data = weight
        self.served = {}

    @contextmanager
    def in_training(self):
        """As the model is in training. Without this, the adapter's part of the base would count twice."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def save(self, directory: Path) -> None:
        tensors = {f"{name}.{part}": value for name, values in self.initial.items() for part, value in zip("AB", values, strict=True)}
        save_file(tensors, directory / INITIAL)

    def learned(self, name: str, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A [2 r, in] and B [out, 2 r] of what was learned, from the module's trained A and B in float32."""
        a0, b0 = (part.to(a.device) for part in self.initial[name])
        return torch.cat([a, a - a0]), torch.cat([b - b0, b0], dim=1)
