#!/usr/bin/env bash
# Builds the images of this checkout without a registry and hands them to the node that up.sh started, or to kind.
# usage: images.sh [--kind NAME | --layers | --debian]      --layers: only makes the layers, for later; needs no node
#   --debian: only the layer with Debian; prints its file, which infra/images/base-images.sh begins with
#   docker.io/loraline/{services,agent,trainer,nats,engine-cpu,jobset}:dev
# Cold: some 60 s, most of it debootstrap. Nothing changed: a second. A changed source file: only the layer with the sources.
# Python (6 GB) is in no image: volumes.sh mounts this checkout's .venv.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
root=$PWD
export PATH=$root/tools/node_modules/.bin:$PATH
bin=${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}
cache=${LORALINE_IMAGE_CACHE:-$HOME/.cache/loraline/images}
blobs=$cache/blobs
socket=/run/test-containerd/containerd.sock
fail() { echo "images.sh: $1" >&2; exit 1; }

kind=
layers_only= debian_only=
if [ "${1:-}" = --kind ]; then
  kind=${2:?usage: images.sh --kind NAME}
elif [ "${1:-}" = --layers ]; then
  layers_only=1
elif [ "${1:-}" = --debian ]; then
  debian_only=1
else
  [ -S $socket ] || fail "no node runs here: start it with infra/cluster/up.sh (make cluster-up)."
fi
[ -n "$debian_only" ] || for tool in nats-server jobset; do [ -x "$bin/$tool" ] || fail "$bin/$tool is missing: run infra/cluster/build.sh."; done
[ -n "$debian_only" ] || { [ -e node_modules/.stamp ] && [ -e packages/console/dist/index.html ] || fail "this checkout has no packages yet: run make setup."; }
mkdir -p "$blobs"
# Two at once would write the same files.
exec 9>"$cache/.lock"
flock 9
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

key() { sha256sum | cut -c1-16; }
# layer NAME KEY COMMAND...: the digest of a layer that COMMAND prints; made anew only when KEY differs.
layer() {
  local name=$1 key=$2 digest
  shift 2
  if ! { read -r was digest <"$cache/$name.layer" && [ "$was" = "$key" ] && [ -e "$blobs/$digest" ]; } 2>/dev/null; then
    digest=$("$@") || fail "the layer $name cannot be made"
    echo "$key $digest" >"$cache/$name.layer"
  fi
  echo "$digest"
}
tool() { python3 "$here/mkimage.py" "$@"; }

# --- Debian: what Node, torch and vLLM link to, and a name for the user ---
packages=libatomic1,libgomp1,libnuma1,libstdc++6,libsqlite3-0,libreadline8,libssl3,libffi8,libbz2-1.0,liblzma5,zlib1g,ca-certificates
# An environment of Debian's own Python needs that Python; any other one is mounted.
[ "$(sed -n 's/^home = //p' .venv/pyvenv.cfg 2>/dev/null)" = /usr/bin ] && packages+=,python3
debian() {
  if ! command -v debootstrap >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap; } >&2 || return 1
  fi
  echo "images.sh: a minimal Debian (once)" >&2
  local mirror
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' 2>/dev/null | head -1)
  debootstrap --variant=minbase --include="$packages" bookworm "$work/debian" ${mirror:+"$mirror"} >"$work/debootstrap.log" 2>&1 ||
    { tail -5 "$work/debootstrap.log" >&2; return 1; }
  ( cd "$work/debian"
    rm -rf dev/* proc/* sys/* var/cache/apt/* var/lib/apt/lists/* var/log/* usr/share/doc usr/share/man usr/share/locale usr/share/info
    echo "nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin" >>etc/passwd
    echo "nonroot:x:65532:" >>etc/group )
  tool layer "$blobs" "$work/debian=/"
}
debian=$(layer debian "$(echo "$packages 2" | key)" debian)
[ -z "$debian_only" ] || { echo "$blobs/$debian"; exit 0; }

# --- Python: pods mount .venv read-only, and would compile what they import at each start, for 14 seconds ---
if ! [ .venv/.compiled -nt services/train/trainer/requirements.lock ]; then
  .venv/bin/python -m compileall -qq -j 0 .venv/lib || true # some packages have templates that are no Python
  touch .venv/.compiled
fi

# --- Node, the packages' production dependencies, the sources ---
node_bin=$(readlink -f tools/node_modules/node/bin/node)
node() { tool layer "$blobs" "$node_bin=/usr/local/bin/node"; }
node=$(layer node "$(stat -c '%s %Y' "$node_bin" | key)" node)

manifests=(package.json pnpm-lock.yaml pnpm-workspace.yaml packages/*/package.json services/*/package.json)
modules() {
  cp --parents -r "${manifests[@]}" patches "$work"/modules
  ( cd "$work/modules" && pnpm install --prod --frozen-lockfile --prefer-offline --filter-prod '{./services/*}...' --filter-prod '{./packages/cli}...' --loglevel=warn >&2 ) || return 1
  ( cd "$work/modules" && rm -rf "${manifests[@]}" patches && find packages services -type d -empty -delete )
  tool layer "$blobs" "$work/modules=/app"
}
mkdir "$work/modules"
modules=$(layer modules "$(cat "${manifests[@]}" patches/* "$here/images.sh" | key)" modules)

# What an image runs, and nothing that only tests do.
sources() {
  find package.json packages/*/{package.json,src} services/*/{package.json,src} services/train/trainer/{*.py,spec_fields.json} \
    packages/local/engine.py -type f \( -name '*.py' -o -name '*.json' -o -name '*.ts' \) ! -path 'packages/testkit/*' \
    ! -path 'packages/console/src/*' ! -name '*.test.ts' ! -name '*under-test*' ! -name 'scripted-trainer.py' ! -name '*conformance.py'
  find packages/console/dist -type f ! -name .stamp
}
mkdir "$work/sources"
sources | tar -c -T - | tar -x -C "$work/sources"
app=$(tool layer "$blobs" "$work/sources=/app")

nats() { tool layer "$blobs" "$bin/nats-server=/usr/local/bin/nats-server"; }
nats=$(layer nats "$(stat -c '%s %Y' "$bin/nats-server" | key)" nats)
# At the path that JobSet's chart calls.
jobset() { tool layer "$blobs" "$bin/jobset=/manager"; }
jobset=$(layer jobset "$(stat -c '%s %Y' "$bin/jobset" | key)" jobset)

[ -z "$layers_only" ] || exit 0

# --- images ---
settings='"User": "65532:65532", "WorkingDir": "/app", "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "NODE_ENV=production"]'
run='"node", "--conditions=@loraline/source", "--import=/app/packages/runtime/src/heed-signals-main.ts"'
layers="\"$debian\", \"$node\", \"$modules\", \"$app\""
cat >"$work/images.json" <<J
[
  {"name": "docker.io/loraline/services:dev", "layers": [$layers], "config": {$settings, "Entrypoint": [$run]}},
  {"name": "docker.io/loraline/agent:dev", "layers": [$layers], "config": {$settings, "Entrypoint": [$run]}},
  {"name": "docker.io/loraline/trainer:dev", "layers": [$layers],
   "config": {$settings, "Entrypoint": [$run, "services/train/src/courier-main.ts"]}},
  {"name": "docker.io/loraline/engine-cpu:dev", "layers": ["$debian", "$app"], "config": {$settings}},
  {"name": "docker.io/loraline/nats:dev", "layers": ["$nats"],
   "config": {"User": "65532:65532", "Env": ["PATH=/usr/local/bin"], "Entrypoint": ["/usr/local/bin/nats-server"]}},
  {"name": "docker.io/loraline/jobset:dev", "layers": ["$jobset"], "config": {"User": "65532:65532", "Entrypoint": ["/manager"]}}
]
J

if [ -n "$kind" ]; then
  tool archive "$blobs" "$work/images.tar" <"$work/images.json"
  kind load image-archive --name "$kind" "$work/images.tar"
else
  ctr() { command ctr -a $socket -n k8s.io "$@"; }
  # Each node knows what it was given last; one that was made anew knows nothing.
  state=$(sha256sum "$work/images.json" | cut -d' ' -f1)
  have=$(ctr images ls -q)
  given=$(ctr images ls 'name==docker.io/loraline/services:dev' | grep -o 'loraline.dev/images=[0-9a-f]*' || true)
  if [ "$given" != "loraline.dev/images=$state" ] || [ "$(grep -c '^docker.io/loraline/.*:dev$' <<<"$have")" -lt 6 ]; then
    ctr content ls -q | sed 's/^sha256://' >"$work/have"
    tool archive "$blobs" "$work/images.tar" "$work/have" <"$work/images.json"
    ctr images import "$work/images.tar" >"$work/import.log" 2>&1 || { cat "$work/import.log" >&2; fail "the node refused the images"; }
    ctr images label docker.io/loraline/services:dev "loraline.dev/images=$state" >/dev/null
  fi
fi
# Layers of earlier checkouts. (grep ends with 1 where there are none.)
find "$blobs" -type f | { grep -v -e "$debian" -e "$node" -e "$modules" -e "$app" -e "$nats" -e "$jobset" || true; } | xargs -r rm -f
