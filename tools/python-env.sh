#!/bin/sh
# Installs exactly the packages of the lock file into .venv. usage: python-env.sh LOCK
# uv does it in seconds. uv has an environment of its own, so that syncing .venv cannot remove it.
set -e
lock=$1
uv=tools/uv/bin/uv
if ! [ -x "$uv" ]; then
  python3 -m venv --clear tools/uv
  tools/uv/bin/pip install --quiet uv==0.13.9
fi
# uv gets the path of the interpreter, because otherwise it tries to download one.
[ -x .venv/bin/python ] || "$uv" venv --quiet --clear --python "$(command -v python3)" .venv
echo "python: $(grep -c '^[a-z0-9].*==' "$lock") packages into .venv (6 GB the first time: torch and vLLM)"
"$uv" pip sync --quiet --python .venv/bin/python --require-hashes "$lock"
