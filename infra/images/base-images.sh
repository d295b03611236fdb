#!/usr/bin/env bash
# Makes the images that the Dockerfiles begin with, where no registry can be reached: Debian by debootstrap, Node and npm of this machine, Debian's
# Python. They have what the public images have that the Dockerfiles use, and this machine's certificates.
# usage: base-images.sh      prints NODE_IMAGE=… and PYTHON_IMAGE=…, for build.sh. Needs docker, npm, and what `make setup` installs.
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() { echo "base-images.sh: $1" >&2; exit 1; }
export DOCKER_BUILDKIT=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

debian=$(infra/cluster/images.sh --debian)
cp "$(readlink -f tools/node_modules/node/bin/node)" "$work/node"
npm=$(dirname "$(readlink -f "$(command -v npm)")")/..
[ -e "$npm/bin/npm-cli.js" ] || fail "npm is taken from this machine, and is not where Node has it: $npm."
cp -rL "$npm" "$work/npm"
cp /etc/ssl/certs/ca-certificates.crt "$work/"
ln "$debian" "$work/debian.tar" 2>/dev/null || cp "$debian" "$work/debian.tar"
# With the same content it is the same image, so what was built on it is still in the engine's cache.
cat >"$work/Dockerfile" <<'D'
FROM scratch AS certified
ADD debian.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY ca-certificates.crt /etc/ssl/certs/
ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt
FROM certified AS node
COPY node /usr/local/bin/node
COPY npm /usr/local/lib/node_modules/npm
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
FROM certified AS python
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-pip && rm -rf /var/lib/apt/lists/*
D
for stage in node python; do
  docker build --quiet --network host --target $stage --tag loraline-base/$stage:bookworm "$work" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "the base image of $stage cannot be built"; }
done
echo "NODE_IMAGE=loraline-base/node:bookworm"
echo "PYTHON_IMAGE=loraline-base/python:bookworm"
