#!/bin/sh
# What train.py needs, exactly as in requirements.lock, in an environment of its own below .cache. Run from the root of a checkout, after `make setup`.
set -e
python=.cache/examples-nats/python/bin/python
[ -x "$python" ] || .venv/bin/python -m venv --clear .cache/examples-nats/python
"$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r examples/nats/python/requirements.lock
