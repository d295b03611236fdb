"""
A linear layer with its LoRA adapter as one operation of autograd, for training.

PEFT computes base(x) + B(A(dropout(x))) * scaling as five operations, of which three, and as many backwards, pass over whole activations only to
scale or to add. A matrix product can do both on its way, which makes a step of a small base a tenth shorter. The numbers are PEFT's up to
rounding. Whatever is more than this (DoRA, quantised weights, a merged or disabled adapter) stays PEFT's own.
"""

from functools import partial

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable


class LoraLinear(torch.autograd.Function):
    """
    y = x Wᵀ + bias + scaling (dropped Aᵀ) Bᵀ, where W and bias are constants.

    x, dropped [tokens, in]; W [out, in]; bias [out] or None; A [rank, in]; B [out, rank]; all of one type. dropped: x after LoRA's dropout, or
    None where nothing is dropped.
    """

    @staticmethod
    def forward(ctx, x, dropped, weight, bias, a, b, scaling):
        low = (x if dropped is None else dropped) @ a.T
        ctx.save_for_backward(x if dropped is None else dropped, weight, a, b, low)
        ctx.scaling, ctx.is_dropped = scaling, dropped is not None
        return torch.nn.functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, a, b, low = ctx.saved_tensors
        of_low = (gradient @ b).mul_(ctx.scaling)
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None
        of_dropped = None
        if ctx.is_dropped:
            of_dropped = of_low @ a if ctx.needs_input_grad[1] else None
        elif of_x is not None:
            of_x.addmm_(of_low, a)
        return of_x, of_dropped, None, None, of_low.T @ x, (gradient.T @ low).mul_(ctx.scaling), None


def use(model) -> None:
    """Lets the model's plain LoRA layers be computed at once. Their `forward` decides at each call, since adapters are disabled and dropout ends."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is torch.nn.Linear and len(module.lora_A) == 1:
            (name,) = module.lora_A
            if name not in module.lora_variant and not module.lora_bias.get(name):
                module.forward = partial(forward, module, name)


def forward(module: Linear, name: str, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    weight, bias = module.base_layer.weight, module.base_layer.bias
    a, b, dropout = module.lora_A[name].weight, module.lora_B[name].weight, module.lora_dropout[name]
    is_plain = not (args or kwargs or module.disable_adapters or module.merged or weight.requires_grad) and name in module.active_adapters
    if not is_plain or not torch.is_grad_enabled():
        return Linear.forward(module, x, *args, **kwargs)
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # as autocast would in each product
        to = torch.get_autocast_dtype(kind)
        x, weight, a, b = x.to(to), weight.to(to), a.to(to), b.to(to)
        bias = None if bias is None else bias.to(to)
    if not x.dtype == weight.dtype == a.dtype == b.dtype:
        return Linear.forward(module, x)
    rows = x.reshape(-1, x.shape[-1])
    dropped = None if isinstance(dropout, torch.nn.Identity) or not module.training else dropout(rows)
    with torch.autocast(kind, enabled=False):
        output = LoraLinear.apply(rows, dropped, weight, bias, a, b, module.scaling[name])
    return output.view(*x.shape[:-1], -1)
