# All TypeScript services in one image; the pod names the one that runs: `services/gateway/src/main.ts`.
#   docker build -f infra/images/services.Dockerfile --build-arg NODE_IMAGE=node:26.10.0-bookworm-slim@sha256:... -t REGISTRY/services:TAG .
# NODE_IMAGE has no default: pin it by digest, or name one built locally. It needs Node 26 and glibc (the tokenizers are native).
# Where no registry can be reached, infra/cluster/images.sh makes the same image.
ARG NODE_IMAGE
FROM ${NODE_IMAGE} AS build
ARG PNPM_VERSION=12.21.0
RUN npm install --global --allow-scripts=pnpm pnpm@${PNPM_VERSION}
WORKDIR /app
COPY pnpm-lock.yaml pnpm-workspace.yaml ./
COPY patches patches
RUN pnpm fetch --prod --loglevel=warn && rm -rf node_modules
COPY . .
# The console's pages, which need only a browser.
RUN pnpm install --frozen-lockfile --prefer-offline --loglevel=warn --filter '@loraline/console...' \
 && pnpm --filter @loraline/console run build \
 && rm -rf node_modules packages/*/node_modules
# Production dependencies of what services import, and of the command line, with which the chart's Job makes the streams.
RUN pnpm install --prod --frozen-lockfile --prefer-offline --loglevel=warn --filter-prod '{./services/*}...' --filter-prod '{./packages/cli}...' \
 && rm -rf packages/testkit packages/console/src packages/console/public services/train/trainer patches pnpm-lock.yaml pnpm-workspace.yaml \
 && chmod -R a+rX /app

FROM ${NODE_IMAGE}
ENV NODE_ENV=production HOME=/tmp
WORKDIR /app
COPY --from=build /app /app
USER 65532:65532
# The second option has a process end on SIGTERM also while it still loads: the first process of a container ignores it otherwise.
ENTRYPOINT ["node", "--conditions=@loraline/source", "--import=/app/packages/runtime/src/heed-signals-main.ts"]
