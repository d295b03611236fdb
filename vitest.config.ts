import { defineConfig } from "vitest/config";

const excluded = ["**/node_modules/**", "**/dist/**", ".venv/**", ".loraline/**", ".cache/**", "tools/**"];
const wholeLine = ["tests/e2e/**/*.test.ts", "tests/faults/**/*.test.ts"];

// Workspace packages resolve to their sources. With `resolve.conditions` alone vitest would silently test `dist`. Vitest hands
// these to Node too, so `import` or `module` must not be among them: a CommonJS dependency would then require ES modules.
const ssr = { resolve: { conditions: ["@loraline/source", "node"] } };

export default defineConfig({
  test: {
    projects: [
      {
        ssr,
        test: {
          name: "unit",
          include: ["**/*.test.ts"],
          exclude: [...excluded, ...wholeLine, "**/*.integration.test.ts", "**/*.cluster.test.ts"],
        },
      },
      {
        ssr,
        test: {
          name: "integration",
          include: ["**/*.integration.test.ts"],
          exclude: [...excluded, ...wholeLine],
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      // Needs the Kubernetes that infra/cluster/build.sh builds.
      {
        ssr,
        test: {
          name: "cluster",
          include: ["**/*.cluster.test.ts"],
          exclude: excluded,
          testTimeout: 60_000,
          hookTimeout: 120_000,
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
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
      // The chart on a real node, which global-setup.ts brings up.
      {
        ssr,
        test: {
          name: "cluster-e2e",
          include: ["tests/e2e/cluster/**/*.test.ts"],
          globalSetup: "tests/e2e/cluster/global-setup.ts",
          fileParallelism: false,
          testTimeout: 600_000,
          hookTimeout: 900_000,
        },
      },
      {
        ssr,
        test: {
          name: "faults",
          include: ["tests/faults/**/*.test.ts"],
          fileParallelism: false,
          testTimeout: 900_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
});
