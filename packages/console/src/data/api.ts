/** The API as this page uses it. The browser's session speaks for the reader, so no key is ever in a script's hands. */
import { ApiError, createApiClient } from "@loraline/client";
import { type Scope, type SessionView, terminalPhases, type RunState } from "@loraline/contracts";
import { infiniteQueryOptions, MutationCache, QueryCache, QueryClient, queryOptions } from "@tanstack/react-query";
import { keptPairs } from "./kept-pairs.ts";

export const api = createApiClient({ url: location.origin, apiKey: "", retries: 1 });

export const jobIdOf = (runId: string): string => `ftjob-${runId}`;
export const fileIdOf = (datasetId: string): string => `file-${datasetId}`;

/** Whether trying again, by itself, can help. */
const mayPass = (error: unknown): boolean =>
  error instanceof ApiError && (error.status === null || error.status === 429 || error.status >= 502 || error.status === 503);

/** Whoever is refused may be signed out: looked at once, not when the stream of changes notices. */
const onError = (error: unknown): void => {
  if (error instanceof ApiError && error.status === 401 && queryClient.getQueryData(sessionEndedQuery.queryKey) !== true)
    void queryClient.invalidateQueries({ queryKey: sessionQuery.queryKey });
};

export const queryClient: QueryClient = new QueryClient({
  queryCache: new QueryCache({ onError }),
  mutationCache: new MutationCache({ onError }),
  defaultOptions: {
    queries: {
      retry: (failures, error) => failures < 2 && mayPass(error),
      // The stream of changes says when something is old.
      staleTime: 30_000,
      refetchOnWindowFocus: false,
      // The browser's own guess; whether the server answers is seen by asking it.
      networkMode: "always",
    },
    mutations: { networkMode: "always" },
  },
});

/** Who is signed in; null: nobody. A session that ends under an open page stays here, so that the page stays as it is, with all that was typed. */
export const sessionQuery = queryOptions({
  queryKey: ["session"],
  queryFn: async ({ signal }): Promise<SessionView | null> => {
    const before = queryClient.getQueryData(sessionQuery.queryKey) ?? null;
    try {
      const now = await api.getSession({ signal });
      resumeSession(before, now);
      return now;
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 401)) throw error;
      if (before !== null) queryClient.setQueryData(sessionEndedQuery.queryKey, true);
      return before;
    }
  },
  staleTime: Number.POSITIVE_INFINITY,
});

/** Whether the session of `sessionQuery` has ended: whoever it is of has to sign in again. */
export const sessionEndedQuery = queryOptions({
  queryKey: ["session-ended"],
  queryFn: () => false,
  initialData: false,
  staleTime: Number.POSITIVE_INFINITY,
});

/** Goes on where the session had ended. Another person begins with an empty page: what is on this one is not theirs. */
export function resumeSession(before: SessionView | null, now: SessionView): void {
  if (before !== null && (before.tenant !== now.tenant || before.name !== now.name)) {
    keptPairs.write([]);
    location.reload();
    return;
  }
  if (queryClient.getQueryData(sessionEndedQuery.queryKey) !== true) return;
  queryClient.setQueryData(sessionEndedQuery.queryKey, false);
  queryClient.setQueryData(sessionQuery.queryKey, now);
  void queryClient.invalidateQueries({ predicate: ({ queryKey }) => !String(queryKey[0]).startsWith("session") });
}

export const signInOptionsQuery = queryOptions({
  queryKey: ["sign-in-options"],
  queryFn: ({ signal }) => api.getSignInOptions({ signal }),
  staleTime: Number.POSITIVE_INFINITY,
});

/** Forgets what an earlier session has shown. @param session - null: nobody is signed in. */
export async function enterSession(session: SessionView | null): Promise<void> {
  await queryClient.cancelQueries();
  queryClient.removeQueries({ predicate: ({ queryKey }) => queryKey[0] !== sessionQuery.queryKey[0] });
  queryClient.setQueryData(sessionQuery.queryKey, session);
  queryClient.setQueryData(sessionEndedQuery.queryKey, false);
  keptPairs.write([]);
}

/** Of lists that may be long. */
const itemsOfPage = 100;
export const runsQuery = infiniteQueryOptions({
  queryKey: ["runs"],
  queryFn: ({ signal, pageParam }) =>
    api.listRuns({ signal, query: { limit: itemsOfPage, ...(pageParam === "" ? {} : { after: pageParam }) } }),
  initialPageParam: "",
  getNextPageParam: ({ data, has_more: more }) => (more ? data.at(-1)?.runId : undefined),
});
/** What was trained lately on a base, to tell how long the next one takes. */
export const trainedRunsQuery = (base: string) =>
  queryOptions({
    queryKey: ["trained-runs", base],
    queryFn: ({ signal }) => api.listRuns({ signal, query: { base, phase: "served", limit: 20 } }),
    enabled: base !== "",
  });
export const runQuery = (runId: string) =>
  queryOptions({ queryKey: ["run", runId], queryFn: ({ signal }) => api.getRun({ run_id: runId, signal }) });
export const metricsQuery = (runId: string) =>
  queryOptions({ queryKey: ["metrics", runId], queryFn: ({ signal }) => api.getRunMetrics({ run_id: runId, signal }) });
/** Also what only the steps tell: learning rate, gradient norm, speed. */
export const stepsQuery = (runId: string) =>
  queryOptions({
    queryKey: [...metricsQuery(runId).queryKey, "details"],
    queryFn: ({ signal }) => api.getRunMetrics({ run_id: runId, query: { details: "true" }, signal }),
  });
export const traceQuery = (runId: string) =>
  queryOptions({ queryKey: ["trace", runId], queryFn: ({ signal }) => api.getTrace({ run_id: runId, signal }) });
export const runEventsQuery = (runId: string) =>
  queryOptions({
    queryKey: ["run-events", runId],
    queryFn: ({ signal }) => api.listFineTuningEvents({ fine_tuning_job_id: jobIdOf(runId), query: { limit: 200 }, signal }),
  });

export const datasetsQuery = infiniteQueryOptions({
  queryKey: ["datasets"],
  queryFn: ({ signal, pageParam }) =>
    api.listDatasets({ signal, query: { limit: itemsOfPage, ...(pageParam === "" ? {} : { after: pageParam }) } }),
  initialPageParam: "",
  getNextPageParam: ({ data, has_more: more }) => (more ? data.at(-1)?.datasetId : undefined),
});
export const datasetQuery = (id: string) =>
  queryOptions({ queryKey: ["dataset", id], queryFn: ({ signal }) => api.getDataset({ dataset_id: id, signal }) });
export const reportQuery = (id: string) =>
  queryOptions({ queryKey: ["report", id], queryFn: ({ signal }) => api.getDatasetReport({ dataset_id: id, signal }) });

export const adaptersQuery = queryOptions({ queryKey: ["adapters"], queryFn: ({ signal }) => api.listAdapters({ signal }) });
export const adapterQuery = (adapter: string) =>
  queryOptions({
    queryKey: [...adaptersQuery.queryKey, adapter],
    queryFn: ({ signal }) => api.getAdapter({ adapter, signal }),
    // What replicas hold, and what a canary has counted, comes by no stream.
    refetchInterval: 5000,
  });
/** What replicas report of themselves comes by no stream. */
export const enginesQuery = queryOptions({
  queryKey: ["engines"],
  queryFn: ({ signal }) => api.listEngines({ signal }),
  refetchInterval: 5000,
});
export const modelsQuery = queryOptions({
  queryKey: ["models"],
  queryFn: ({ signal }) => api.listModels({ signal }),
  refetchInterval: 10_000,
});

export const keysQuery = queryOptions({ queryKey: ["keys"], queryFn: ({ signal }) => api.listKeys({ signal }) });
export const limitsQuery = queryOptions({ queryKey: ["limits"], queryFn: ({ signal }) => api.listLimits({ signal }) });
export const usageQuery = queryOptions({ queryKey: ["usage"], queryFn: ({ signal }) => api.getUsage({ signal }) });
export const auditQuery = infiniteQueryOptions({
  queryKey: ["audit"],
  queryFn: ({ signal, pageParam }) => api.listAudit({ signal, query: pageParam === 0 ? {} : { before: pageParam } }),
  initialPageParam: 0,
  getNextPageParam: ({ next }) => next ?? undefined,
});
export const failedQuery = queryOptions({ queryKey: ["failed"], queryFn: ({ signal }) => api.listFailedMessages({ signal }) });

export const isOver = ({ phase }: Pick<RunState, "phase">): boolean => terminalPhases.has(phase);
export const can = (session: { scopes: readonly Scope[] } | null | undefined, scope: Scope): boolean =>
  session?.scopes.includes(scope) ?? false;
