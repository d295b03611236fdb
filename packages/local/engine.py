"""
vLLM's API server for one machine with few cores. The same server, started with the same arguments, but ready in half the time:

- The engine process is forked instead of spawned, so that torch and vLLM are imported once and not twice. vLLM's CPU backend
  asks for `spawn` only so that thread settings can still change in between; here they are in the environment from the start.
- The model class is looked at in this process instead of in a third one that imports everything once more. (vLLM does that
  to keep CUDA out of this process; there is none.)

Should a newer vLLM have moved these two places, it starts in its own, slower way.
"""

import os
import runpy
import sys

if sys.platform == "linux" and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
    try:
        import vllm.envs
        from vllm.model_executor.models import registry

        vllm.envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
        registry._run_in_subprocess = lambda work: work()
    except (ImportError, AttributeError) as error:
        print(f"engine.py: starting without the shortcuts: {error}", file=sys.stderr)

sys.argv[0] = "vllm"
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
