#!/bin/sh
# `datasets` for the side by side of tests/bench/tokenize.ts and for the test that it opens our shards, in an environment of its own:
# beside the trainer it would be imported by transformers, and slow down every start.
set -e
uv=tools/uv/bin/uv
python=.cache/bench-datasets/bin/python
[ -x "$python" ] || "$uv" venv --quiet --clear --python .venv/bin/python .cache/bench-datasets
"$uv" pip sync --quiet --python "$python" --require-hashes tests/bench/datasets.lock
