#!/bin/sh
# TRL, for the side by side of tests/bench/beside_trl.py, in an environment of its own: it needs `datasets`, which would slow down every
# start of the trainer.
set -e
uv=tools/uv/bin/uv
python=.cache/bench-trl/bin/python
[ -x "$python" ] || "$uv" venv --quiet --clear --python .venv/bin/python .cache/bench-trl
"$uv" pip sync --quiet --python "$python" --require-hashes tests/bench/trl.lock
