#!/bin/sh
# What train.py needs, exactly as in requirements.lock, in an environment of its own below .cache. Run from the root of a checkout, after `make setup`.
set -e
env=.cache/examples-nats/python
mkdir -p "$env"
exec 9>"$env.lock"
flock 9 # two at once would take each other's files away
[ -x "$env/bin/python" ] || .venv/bin/python -m venv --clear "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r examples/nats/python/requirements.lock
