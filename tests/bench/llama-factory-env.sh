#!/bin/sh
# LLaMA-Factory, for the side by side of tests/bench/beside_trl.py, in an environment of its own: it needs older versions of what the trainer uses.
set -e
uv=tools/uv/bin/uv
python=.cache/bench-llama-factory/bin/python
[ -x "$python" ] || "$uv" venv --quiet --clear --python .venv/bin/python .cache/bench-llama-factory
"$uv" pip sync --quiet --python "$python" --require-hashes tests/bench/llama-factory.lock
