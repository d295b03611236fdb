/** The pages and their addresses. Each is loaded when it is first opened. */
import { createRootRoute, createRoute, createRouter, lazyRouteComponent, Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { Shell } from "./shell.tsx";
import { useTexts } from "./texts/texts.tsx";
import { Page } from "./ui/controls.tsx";
import { ErrorNote, Loading } from "./ui/states.tsx";

function NotFound(): ReactNode {
  const t = useTexts();
  return (
    <Page title={t.common.notFound}>
      <Link to="/">{t.common.toStart}</Link>
    </Page>
  );
}

const root = createRootRoute({ component: Shell, notFoundComponent: NotFound });
const under = { getParentRoute: () => root } as const;
const text = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : undefined);

const routes = [
  createRoute({ ...under, path: "/", component: lazyRouteComponent(() => import("./screens/start.tsx"), "Start") }),
  createRoute({
    ...under,
    path: "/new",
    validateSearch: (search): { dataset?: string; like?: string } => ({
      ...(text(search["dataset"]) === undefined ? {} : { dataset: text(search["dataset"]) as string }),
      ...(text(search["like"]) === undefined ? {} : { like: text(search["like"]) as string }),
    }),
    component: lazyRouteComponent(() => import("./screens/new-run/new-run.tsx"), "NewRun"),
  }),
  createRoute({ ...under, path: "/runs", component: lazyRouteComponent(() => import("./screens/runs.tsx"), "Runs") }),
  createRoute({ ...under, path: "/runs/$runId", component: lazyRouteComponent(() => import("./screens/run/run.tsx"), "Run") }),
  createRoute({
    ...under,
    path: "/compare",
    validateSearch: (search): { runs?: string } => (text(search["runs"]) === undefined ? {} : { runs: text(search["runs"]) as string }),
    component: lazyRouteComponent(() => import("./screens/compare.tsx"), "Compare"),
  }),
  createRoute({
    ...under,
    path: "/playground",
    validateSearch: (search): { models?: string } =>
      text(search["models"]) === undefined ? {} : { models: text(search["models"]) as string },
    component: lazyRouteComponent(() => import("./screens/playground/playground.tsx"), "Playground"),
  }),
  createRoute({ ...under, path: "/adapters", component: lazyRouteComponent(() => import("./screens/adapters.tsx"), "Adapters") }),
  createRoute({ ...under, path: "/adapters/$adapter", component: lazyRouteComponent(() => import("./screens/adapter.tsx"), "Adapter") }),
  createRoute({ ...under, path: "/datasets", component: lazyRouteComponent(() => import("./screens/datasets.tsx"), "Datasets") }),
  createRoute({ ...under, path: "/datasets/$datasetId", component: lazyRouteComponent(() => import("./screens/dataset.tsx"), "Dataset") }),
  createRoute({ ...under, path: "/engines", component: lazyRouteComponent(() => import("./screens/engines.tsx"), "Engines") }),
  createRoute({
    ...under,
    path: "/admin",
    validateSearch: (search): { tab?: string } => (text(search["tab"]) === undefined ? {} : { tab: text(search["tab"]) as string }),
    component: lazyRouteComponent(() => import("./screens/admin/admin.tsx"), "Administration"),
  }),
] as const;

export const router = createRouter({
  routeTree: root.addChildren([...routes]),
  basepath: "/console",
  defaultPreload: "intent",
  scrollRestoration: true,
  defaultPendingComponent: () => <Loading />,
  defaultErrorComponent: ({ error, reset }) => <ErrorNote error={error} retry={reset} />,
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
