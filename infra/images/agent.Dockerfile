# The sidecar of each engine pod: serve and what it imports, nothing else. See services.Dockerfile for the arguments.
#   docker build -f infra/images/agent.Dockerfile --build-arg NODE_IMAGE=... -t REGISTRY/agent:TAG .
ARG NODE_IMAGE
FROM ${NODE_IMAGE} AS build
ARG PNPM_VERSION=12.21.0
RUN npm install --global --allow-scripts=pnpm pnpm@${PNPM_VERSION}
WORKDIR /app
COPY pnpm-lock.yaml pnpm-workspace.yaml ./
COPY patches patches
RUN pnpm fetch --prod --loglevel=warn && rm -rf node_modules
COPY . .
RUN pnpm install --prod --frozen-lockfile --prefer-offline --loglevel=warn --filter-prod '@loraline/serve...' \
 && rm -rf packages/cli packages/client packages/local packages/testkit packages/kube patches pnpm-lock.yaml pnpm-workspace.yaml \
 && find services -mindepth 1 -maxdepth 1 ! -name serve -exec rm -rf {} + \
 && chmod -R a+rX /app

FROM ${NODE_IMAGE}
ENV NODE_ENV=production HOME=/tmp
WORKDIR /app
COPY --from=build /app /app
USER 65532:65532
# The second option has a process end on SIGTERM also while it still loads: the first process of a container ignores it otherwise.
ENTRYPOINT ["node", "--conditions=@loraline/source", "--import=/app/packages/runtime/src/heed-signals-main.ts"]
CMD ["services/serve/src/agent-main.ts"]
