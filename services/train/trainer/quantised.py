"""
Training on a base whose linear layers are held in 4 or 8 bits (QLoRA): `quantization: nf4` or `int8`.

bitsandbytes packs the weights while they are loaded, one at a time, and unpacks each one where it is needed, once forward and once backward. The products
are ordinary ones in the number format of the run, so packed rows, resuming and several processes are what they are without it. (bitsandbytes' own layers
compute differently in training and in evaluation, and its 8-bit product of a token depends on the tokens beside it.)

Only training is on the packed weights. What is measured and recorded (held-out loss, probes) is of the base as it is served: its weights are read
from the base's files again, one layer at a time, so that they never need memory together. So an adapter is proven on engines of the base, and on its twins,
as strictly as one that was trained without.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from spec import TrainerError
from torch.nn.functional import linear

# As in the QLoRA paper.
BLOCK = 64


class QuantisedLinear(torch.nn.Linear):
    """
    A linear layer whose weight is packed and never trained. `weight` is uint8 [outputs * inputs / 2, 1] or int8 [outputs, inputs]; `parts` are what else it
    takes to unpack it. `read`: the weight to use instead, [outputs, inputs], read anew for each product.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, kind: str):
        super().__init__(inputs, outputs, bias=bias)
        self.kind = kind
        self.parts: dict[str, torch.Tensor] = {}  # no buffers: transformers would begin those anew after it has loaded a model
        self.read: Callable[[], torch.Tensor] | None = None
        self.weight.requires_grad_(False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.parts = {name: part.to(self.weight.device) for name, part in self.parts.items()}
        return self

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Keeps what it takes to unpack, and returns the packed weight."""
        functional = bitsandbytes().functional
        if self.kind == "int8":
            packed, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
            self.parts = {"scales": scales / 127}
            return packed
        packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        self.parts = {"absmax": state.absmax, "offset": state.offset, "code": state.code, "outer_absmax": state.state2.absmax, "outer_code": state.state2.code}
        self.outer_block = state.state2.blocksize
        return packed

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """[outputs, inputs]"""
        if self.kind == "int8":
            return self.weight.to(dtype).mul_(self.parts["scales"][:, None])
        functional, size = bitsandbytes().functional, self.in_features * self.out_features
        outer = functional.QuantState(self.parts["outer_absmax"], code=self.parts["outer_code"], blocksize=self.outer_block, dtype=torch.float32)
        state = functional.QuantState(
            self.parts["absmax"],
            # A row for each block: bitsandbytes 0.50 on a CPU takes the scales of others where inputs are no multiple of the block.
            shape=torch.Size((size // BLOCK, BLOCK) if size % BLOCK == 0 else (1, size)),
            code=self.parts["code"],
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.parts["offset"],
            state2=outer,
        )
        return functional.dequantize_4bit(self.weight.data, state).reshape(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        input, bias = input.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if self.read is not None:
            return linear(input, self.read().to(input.device, dtype), bias)
        product: Any = Product.apply(input, self, dtype)
        return product if bias is None else product + bias


class Product(torch.autograd.Function):
    """input x weight^T. The unpacked weight is not kept for the backward pass, or all layers' would need memory together."""

    @staticmethod
    def forward(ctx, input, layer, dtype):
        ctx.layer, ctx.dtype = layer, dtype
        return linear(input, layer.unpacked(dtype))

    @staticmethod
    def backward(ctx, *gradients):
        (gradient,) = gradients
        return gradient.to(ctx.dtype) @ ctx.layer.unpacked(ctx.dtype), None, None


def bitsandbytes() -> Any:
    """The library. Raises QUANTIZATION_UNSUPPORTED where it is not installed."""
    if sys.modules.get("bitsandbytes", ...) is None:  # hidden by train.py
        del sys.modules["bitsandbytes"]
    try:
        import bitsandbytes as library
    except ImportError as error:
        raise refused("the library bitsandbytes, which packs the weights, is not installed in the trainer's image") from error
    return library


def load(base: Path, kind: str, dtype: torch.dtype, device: str, **arguments) -> Any:
    """The model with its linear layers packed, on the device. Raises QUANTIZATION_UNSUPPORTED."""
    import unpack
    from language_model import auto_class_of

    if unpack.packing_of(base) is not None:
        raise refused(
            "the base's weights are packed into 4 bits in its files already. Without quantization it is trained on what they stand for; with it, train on the"
            " base that it was made of, whose adapters it serves as its twin"
        )
    bitsandbytes()
    config = register()(kind)
    load_model = auto_class_of(base).from_pretrained
    model = load_model(base, dtype=dtype, quantization_config=config, device_map={"": device}, local_files_only=True, **arguments)
    # For transformers it is an ordinary model from here on: it has no way of its own to train or move this one.
    model.hf_quantizer.remove_quantization_config(model)
    stored = stored_names(base)
    if missing := [name for name in layers_of(model) if f"{name}.weight" not in stored]:
        raise refused(f"the base's files have no {missing[0]}.weight, which is read again where the base is measured as it is served")
    return model


def register() -> Any:
    """The configuration with which transformers loads a model through this module."""
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if "loraline" in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return AUTO_QUANTIZATION_CONFIG_MAPPING["loraline"]

    class Pack(ConversionOps):
        def convert(self, input_dict, *_, full_layer_name="", model: Any = None, **__):
            layer = model.get_submodule(full_layer_name.removesuffix(".weight"))
            layer._is_hf_initialized = True
            return {name: torch.nn.Parameter(layer.pack(value[0] if isinstance(value, list) else value), False) for name, value in input_dict.items()}

    @register_quantization_config("loraline")
    class Config(QuantizationConfigMixin):
        def __init__(self, kind: str):
            self.quant_method: Any = "loraline"
            self.kind = kind

    @register_quantizer("loraline")
    class Quantiser(HfQuantizer):
        quantization_config: Config

        def param_needs_quantization(self, model, param_name, **_):
            name, _, part = param_name.rpartition(".")
            return part == "weight" and isinstance(model.get_submodule(name), QuantisedLinear)

        def param_element_size(self, model, param_name, param):
            return 1 if self.param_needs_quantization(model, param_name) else super().param_element_size(model, param_name, param)

        def _process_model_before_weight_loading(self, model, **_):
            import language_model

            if language_model.prefix_of(model):
                raise refused("the base is a language model in a multimodal wrapper")
            if language_model.experts_of(model):
                raise refused(
                    "the base is a mixture of experts, whose weights, nearly all of the base's, are tensors of three dimensions that it does not reach"
                )
            for name, module in language_model.linear_modules(model).items():
                with torch.device("meta"):
                    model.set_submodule(name, QuantisedLinear(module.in_features, module.out_features, module.bias is not None, self.quantization_config.kind))

        def get_quantize_ops(self):
            return Pack()

        def is_serializable(self):
            return False

        @property
        def is_trainable(self):
            return True

    return Config


def refused(why: str) -> TrainerError:
    return TrainerError("QUANTIZATION_UNSUPPORTED", f"quantization: {why}. Remove quantization, or choose another base.", "quantization")


def layers_of(model) -> dict[str, QuantisedLinear]:
    """The packed layers of a model, with or without PEFT, by their names in the base."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {name.removesuffix(".base_layer"): module for name, module in base.named_modules() if isinstance(module, QuantisedLinear)}


def stored_names(base: Path) -> dict[str, Path]:
    """The names of all tensors in a base's files, and in which file each is."""
    found = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            found |= dict.fromkeys(shard.keys(), file)
    return found


@contextmanager
def with_weights(model, read: Callable[[str], torch.Tensor]) -> Generator[None]:
    """The model with weights that `read` gives by name, instead of those that are packed. Without packed layers it is the model as it is."""
    layers = layers_of(model)
    before = {name: layer.read for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.read = partial(read, f"{name}.weight")
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.read = before[name]


@contextmanager
def as_stored(model, base: Path) -> Generator[None]:
    """The model with the base's weights as they are in its files, by which it is served."""
    files = stored_names(base) if layers_of(model) else {}
    opened = {file: safe_open(file, "pt") for file in set(files.values())}
    with with_weights(model, lambda name: opened[files[name]].get_tensor(name)):
        yield
