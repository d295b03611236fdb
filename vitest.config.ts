import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

const excluded = ["**/node_modules/**", "**/dist/**", ".venv/**", ".loraline/**", ".cache/**", "tools/**"];
const wholeLine = ["tests/e2e/**/*.test.ts", "tests/faults/!(*.integration).test.ts"];
const realEngines = ["services/serve/src/engines/**/*.integration.test.ts"];

// Workspace packages resolve to their sources. With `resolve.conditions` alone vitest would silently test `dist`. Vitest hands
// these to Node too, so `import` or `module` must not be among them: a CommonJS dependency would then require ES modules.
const ssr = { resolve: { conditions: ["@loraline/source", "node"] } };

/** How long conditions are waited for. Limits for hangs and no measures: a busy machine takes many times longer than an idle one. */
const patience = { testTimeout: 300_000, hookTimeout: 300_000, expect: { poll: { timeout: 120_000 } } };

export default defineConfig({
  test: {
    // vitest's default leaves a core to itself, which is one of two.
    maxWorkers: availableParallelism(),
    projects: [
      {
        ssr,
        test: {
          name: "unit",
          isolate: false,
          include: ["**/*.test.ts"],
          exclude: [...excluded, ...wholeLine, "**/*.integration.test.ts", "**/*.cluster.test.ts", "**/*.docker.test.ts"],
          ...patience,
        },
      },
      {
        ssr,
        test: {
          name: "integration",
          include: ["**/*.integration.test.ts"],
          exclude: [...excluded, ...wholeLine, ...realEngines],
          ...patience,
        },
      },
      // An engine keeps all cores busy, and tests beside it wait longer than they expect.
      {
        ssr,
        test: {
          name: "engine",
          include: realEngines,
          exclude: excluded,
          fileParallelism: false,
          ...patience,
        },
      },
      // Needs the Kubernetes that infra/cluster/build.sh builds.
      {
        ssr,
        test: {
          name: "cluster",
          include: ["**/*.cluster.test.ts"],
          exclude: excluded,
          ...patience,
        },
      },
      // Builds images with the Docker engine.
      {
        ssr,
        test: {
          name: "docker",
          include: ["**/*.docker.test.ts"],
          exclude: excluded,
          fileParallelism: false,
          ...patience,
          testTimeout: 300_000,
        },
      },
      // These two start the whole line, engine included: one at a time, so that a small machine can hold it.
      {
        ssr,
        test: {
          name: "e2e",
          include: ["tests/e2e/*.test.ts"],
          globalSetup: "tests/e2e/global-setup.ts",
          fileParallelism: false,
          ...patience,
          testTimeout: 900_000,
          hookTimeout: 900_000,
        },
      },
      // The chart on a real node, which global-setup.ts brings up: the product, what can go wrong with attempts and installations, and what else there is to install.
      ...(
        [
          ["cluster-e2e", "tests/e2e/cluster/{network,line}.test.ts"],
          ["cluster-attempts", "tests/e2e/cluster/{attempts,wrong-input}.test.ts"],
          ["cluster-more", "tests/e2e/cluster/more/*.test.ts"],
        ] as const
      ).map(([name, include]) => ({
        ssr,
        test: {
          name,
          include: [include],
          globalSetup: "tests/e2e/cluster/global-setup.ts",
          fileParallelism: false,
          ...patience,
          testTimeout: 900_000,
          hookTimeout: 900_000,
        },
      })),
      {
        ssr,
        test: {
          name: "faults",
          include: ["tests/faults/*.test.ts"],
          exclude: ["**/*.integration.test.ts"],
          fileParallelism: false,
          ...patience,
          testTimeout: 900_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
});
