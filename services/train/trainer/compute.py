"""
The number format that this machine computes in, and what a result says about the machine.

A processor without instructions for bf16 multiplies bf16 matrices at a quarter of its speed in float32. So the format follows from
the processor's flags alone: on one machine it is always the same. What is published is bf16 everywhere.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

BF16, FP32 = "bfloat16", "float32"
# A processor that has one of these flags multiplies bf16 matrices natively. x86 lists `flags`, ARM `Features`.
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
# The values of oneDNN's own limit under which it uses none of them.
LIMITS_BELOW_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def native_type(cpuinfo: Path = Path("/proc/cpuinfo"), environment: Mapping[str, str] = os.environ) -> str:
    """
    "bfloat16" or "float32": what the processor computes natively, as far as oneDNN may use it (ONEDNN_MAX_CPU_ISA). A processor that
    tells no flags counts as one without bf16. packages/runtime/src/native-compute-type.ts says the same to the services.
    """
    limit = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or ""
    if limit.upper() in LIMITS_BELOW_BF16:
        return FP32
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return FP32
    named = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return BF16 if NATIVE_BF16 & set(named.partition(":")[2].split()) else FP32


def describe(compute_type: str, seed: int, on_gpu: bool, quantization: str | None = None) -> dict:
    """`environment` of result.json: all that decides the last bits of a training, besides its data and settings."""
    import peft
    import torch
    import transformers

    libraries = [torch, transformers, peft]
    if quantization is not None:
        import bitsandbytes

        libraries.append(bitsandbytes)
    return {
        "compute_type": compute_type,
        **({} if quantization is None else {"quantization": quantization}),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "instruction_set": None if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "max_instruction_set": os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA"),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "libraries": {"python": platform.python_version(), **{each.__name__: str(each.__version__) for each in libraries}},
    }
