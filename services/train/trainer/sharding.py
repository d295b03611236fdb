"""
FSDP2 (`training.fsdp`): a base that is larger than one device is shared out among all processes. Each holds its part of every weight, reads
only this part from the files, straight to its device, and has a layer whole while it computes it. The adapter is small: each process has
all of it, with its optimizer, as without FSDP. So checkpoints and results are the same files, and the same numbers.

A pass through the model is then the work of all processes together: each must make the same passes in the same order.
"""

from pathlib import Path
from typing import Any

import torch
from spec import TrainerError
from torch import distributed


def load(folder: Path, dtype: torch.dtype, ranks: int, **arguments):
    """The base in `ranks` parts. Begins torch's process group. Raises TRAINING_FIELD_REFUSED for a base that cannot be shared out."""
    import language_model
    from torch.distributed.fsdp import FSDPModule
    from transformers import AutoConfig
    from transformers.distributed import DistributedConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if getattr(config, "quantization_config", None) is not None:
        raise refusal("the weights of this base are quantised, and only whole numbers can be read in parts. Train on the base that it was made from")
    if config.get_text_config() is not config:
        raise refusal("this base takes pictures, and only a language model alone is shared out")
    shared: Any = {"distributed_config": DistributedConfig(fsdp_size=ranks)}
    model = language_model.auto_class_of(folder).from_pretrained(folder, dtype=dtype, **shared, **arguments)
    if sum(isinstance(module, FSDPModule) for module in model.modules()) <= config.num_hidden_layers:
        raise refusal(f"transformers does not know the layers of {type(model).__name__}, by which it would be shared out")
    return model


def refusal(why: str) -> TrainerError:
    return TrainerError("TRAINING_FIELD_REFUSED", f"training.fsdp is refused: {why}, or remove training.fsdp.", "training.fsdp")


def is_sharded(model) -> bool:
    return getattr(model, "is_distributed_loading_by_transformers", False)


@torch.no_grad()
def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """The mean over all processes, in one transfer for each type of number."""
    for dtype in {parameter.dtype for parameter in parameters}:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None and parameter.dtype == dtype]
        together = torch.cat([gradient.flatten() for gradient in gradients]).div_(distributed.get_world_size())
        distributed.all_reduce(together)
        for gradient, mean in zip(gradients, together.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
