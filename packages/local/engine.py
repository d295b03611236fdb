"""
vLLM's API server for a machine with few cores. It takes the same arguments as vLLM's own program, but it is ready in half the
time, and LoRA is nearly as fast as the base (`run_lora_by_slot`):

- The engine process is forked instead of spawned, so that torch and vLLM are imported once and not twice. vLLM's CPU backend
  asks for `spawn` only so that thread settings can still change in between; here they are in the environment from the start.
- The model class is inspected in this process instead of in a third one that would import everything again. (vLLM uses a
  third process to keep CUDA out of this one; here there is no CUDA.)

If a newer vLLM has moved these two places, it starts in its own, slower way.
"""

import os
import runpy
import sys

if sys.platform == "linux" and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
    try:
        import vllm.envs
        from vllm.model_executor.models import registry

        vllm.envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
        vars(registry)["_run_in_subprocess"] = lambda work: work()
    except (ImportError, AttributeError) as error:
        print(f"engine.py: starting without the shortcuts: {error}", file=sys.stderr)


def run_lora_by_slot():
    """
    vLLM 0.32's LoRA kernels for the CPU, computed for each adapter instead of for each token. vLLM's own kernels
    - copy an adapter's weights once for every token: a prompt of 50 tokens takes 0.6 s, here 0.1 s;
    - take index -1 ("no adapter") as Python does, for the last slot: with all slots in use, a request to the base that shares
      a batch with one to an adapter is answered with the weights of a third;
    - stop the whole engine on a request with `prompt_logprobs` that shares a batch.
    """
    import torch
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    def runs_of(slots, lengths):
        """[(slot, first row, end)] of neighbouring rows with one slot."""
        runs, start = [], 0
        for slot, length in zip(slots, lengths, strict=True):
            if runs and runs[-1][0] == slot:
                runs[-1][2] += length
            elif length:
                runs.append([slot, start, start + length])
            start += length
        return runs

    def token_runs(inputs, weights, indices):
        slots = indices.tolist()
        if len(slots) != len(inputs):
            # Logits of a whole prompt have one index for each request. Without an adapter on the head there is nothing to add.
            if len(slots) == 1:
                slots *= len(inputs)
            elif not weights.any():
                slots = [-1] * len(inputs)
            else:
                raise RuntimeError("prompt_logprobs with an adapter on lm_head is not supported on the CPU")
        return runs_of(slots, [1] * len(slots))

    def matrix(weights, slot, dtype):
        return (weights[slot, 0] if weights.dim() == 4 else weights[slot]).to(dtype)

    def shrink(inputs, weights, output, runs, scaling):
        rank = weights.shape[-2]
        for slot, start, end in runs:
            if slot < 0:
                output[start:end, :rank] = 0
            else:
                product = inputs[start:end].to(output.dtype) @ matrix(weights, slot, output.dtype).T
                output[start:end, :rank] = product if scaling == 1 else product * scaling

    def expand(inputs, weights, output, runs, add, offset=0, size=None):
        # The base may have padded its output differently.
        size = min(weights.shape[-2], output.shape[1] - offset) if size is None else size
        for slot, start, end in runs:
            target = output[start:end, offset : offset + size]
            if slot >= 0:
                product = inputs[start:end].to(output.dtype) @ matrix(weights, slot, output.dtype)[:size].T
                target += product if add else product - target
            elif not add:
                target.zero_()

    def sequence_runs(lengths, indices):
        return runs_of(indices.tolist(), lengths.tolist())

    def bgmv_shrink(inputs, weights, output, indices, scaling=1.0):
        shrink(inputs, weights, output, token_runs(inputs, weights, indices), scaling)

    def bgmv_expand(inputs, weights, output, indices, add_inputs=True):
        expand(inputs, weights, output, token_runs(inputs, weights, indices), add_inputs)

    def bgmv_expand_slice(inputs, weights, output, indices, slice_offset, slice_size, add_inputs=True):
        expand(inputs, weights, output, token_runs(inputs, weights, indices), add_inputs, slice_offset, slice_size)

    def sgmv_shrink(inputs, weights, output, _starts, lengths, indices, _batches, _longest, _tokens, scaling):
        shrink(inputs, weights, output, sequence_runs(lengths, indices), scaling)

    def sgmv_expand(inputs, weights, output, _starts, lengths, indices, _batches, _longest, _tokens, add_inputs=False):
        expand(inputs, weights, output, sequence_runs(lengths, indices), add_inputs)

    def sgmv_expand_slice(inputs, weights, output, _starts, lengths, indices, _batches, _longest, _tokens, slice_offset, slice_size, add_inputs=False):
        expand(inputs, weights, output, sequence_runs(lengths, indices), add_inputs, slice_offset, slice_size)

    for kernel in (bgmv_shrink, bgmv_expand, bgmv_expand_slice, sgmv_shrink, sgmv_expand, sgmv_expand_slice):
        for module in (lora_ops, punica_cpu):
            getattr(module, kernel.__name__)  # a newer vLLM has moved the kernel: the original keeps working
            setattr(module, kernel.__name__, torch.inference_mode()(kernel))


try:
    run_lora_by_slot()
except (ImportError, AttributeError) as error:
    print(f"engine.py: vLLM's own LoRA kernels are used: {error}", file=sys.stderr)


def run_experts_without_lora():
    """
    With LoRA enabled, vLLM computes experts with Triton, which a CPU does not have, so that the first request ends the engine. Here adapters have
    no experts (--lora-target-modules leaves them out), so experts are computed as without LoRA.
    """
    from copy import copy

    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as method

    select = method.select_unquantized_moe_backend

    def select_without_lora(moe_config):
        without = copy(moe_config)
        without.is_lora_enabled = False
        return select(without)

    vars(method)["select_unquantized_moe_backend"] = select_without_lora


if "--lora-target-modules" in sys.argv:
    try:
        run_experts_without_lora()
    except (ImportError, AttributeError) as error:
        print(f"engine.py: experts are computed as vLLM chooses: {error}", file=sys.stderr)

sys.argv[0] = "vllm"
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
