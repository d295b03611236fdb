#!/bin/sh
# LiteLLM's proxy, for the side by side of tests/bench/gateway.ts, in an environment of its own.
set -e
uv=tools/uv/bin/uv
python=.cache/bench-litellm/bin/python
[ -x "$python" ] || "$uv" venv --quiet --clear --python .venv/bin/python .cache/bench-litellm
"$uv" pip sync --quiet --python "$python" --require-hashes tests/bench/litellm.lock
