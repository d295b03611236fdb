/** Follows the server's changes and puts them where the pages read. Says when it does not hear from the server any more. */
import { type DatasetState, type LiveEvent, liveEvent, type RunState } from "@loraline/contracts";
import type { QueryClient } from "@tanstack/react-query";
import {
  adaptersQuery,
  datasetQuery,
  datasetsQuery,
  isOver,
  metricsQuery,
  modelsQuery,
  runEventsQuery,
  runQuery,
  runsQuery,
  sessionQuery,
} from "./api.ts";

export interface LiveState {
  /** `lost`: what is shown is from `since`. */
  status: "connecting" | "live" | "lost";
  /** Milliseconds since the epoch. */
  since: number;
}

/** The server says something every ten seconds. */
const silentMs = 25_000;
const againMs = 2000;

/** @returns what stops it. */
export function followServer(client: QueryClient, onState: (state: LiveState) => void): () => void {
  let state: LiveState = { status: "connecting", since: Date.now() };
  let source: EventSource | undefined;
  let heardAt = Date.now();
  let openedAt = Date.now();
  let again: ReturnType<typeof setTimeout> | undefined;
  const become = (status: LiveState["status"]): void => {
    if (state.status === status) return;
    state = { status, since: status === "lost" ? heardAt : Date.now() };
    onState(state);
  };
  const refresh = createRefresher(client);

  const open = (): void => {
    source?.close();
    openedAt = Date.now();
    source = new EventSource("/v1/loraline/live");
    source.addEventListener("message", ({ data }: MessageEvent<string>) => {
      const parsed = liveEvent.safeParse(JSON.parse(data));
      heardAt = Date.now();
      if (!parsed.success) return;
      if (parsed.data.type === "ready") {
        become("live");
        // What was missed is not known, so everything that is shown is read anew.
        if (!parsed.data.resumed) void client.invalidateQueries();
      }
      take(client, parsed.data, refresh);
    });
    source.addEventListener("error", () => {
      become("lost");
      // The browser tries again by itself, but not after an answer such as 401 or 503.
      if (source?.readyState !== EventSource.CLOSED) return;
      become("lost");
      void client.invalidateQueries({ queryKey: sessionQuery.queryKey });
      clearTimeout(again);
      again = setTimeout(open, againMs);
    });
  };
  const watch = setInterval(() => {
    if (Date.now() - Math.max(heardAt, openedAt) < silentMs) return;
    become("lost");
    // A connection that is only silent may never fail by itself.
    open();
  }, 2000);
  open();
  return () => {
    clearInterval(watch);
    clearTimeout(again);
    source?.close();
  };
}

type Refresh = (key: readonly unknown[], everyMs: number) => void;

/** Reads something anew, but not more often than said, however often it changes. */
function createRefresher(client: QueryClient): Refresh {
  const due = new Map<string, ReturnType<typeof setTimeout>>();
  return (key, everyMs) => {
    const name = JSON.stringify(key);
    if (due.has(name)) return;
    due.set(
      name,
      setTimeout(() => {
        due.delete(name);
        void client.invalidateQueries({ queryKey: key });
      }, everyMs),
    );
  };
}

function take(client: QueryClient, event: LiveEvent, refresh: Refresh): void {
  switch (event.type) {
    case "run":
      takeRun(client, event.run, refresh);
      return;
    case "dataset":
      takeDataset(client, event.dataset);
      return;
    case "adapter":
      refresh(adaptersQuery.queryKey, 300);
      refresh(modelsQuery.queryKey, 1000);
      return;
    case "ready":
    case "beat":
      return;
  }
}

function takeRun(client: QueryClient, run: RunState, refresh: Refresh): void {
  const before = client.getQueryData(runQuery(run.runId).queryKey);
  client.setQueryData(runQuery(run.runId).queryKey, run);
  client.setQueryData(runsQuery.queryKey, (known) => {
    if (known === undefined) return known;
    const isThere = known.pages.some(({ data }) => data.some(({ runId }) => runId === run.runId));
    const pages = known.pages.map((page, at) => ({
      ...page,
      data: isThere ? page.data.map((one) => (one.runId === run.runId ? run : one)) : at === 0 ? [run, ...page.data] : page.data,
    }));
    return { ...known, pages };
  });
  const { progress } = run;
  if (progress?.phase === "train" && typeof progress.loss === "number") {
    client.setQueryData(metricsQuery(run.runId).queryKey, (known) => {
      if (known === undefined || (known.data.at(-1)?.step ?? -1) >= progress.step) return known;
      const point = { step: progress.step, train_loss: progress.loss, valid_loss: null, valid_mean_token_accuracy: null };
      return { ...known, data: [...known.data, point] };
    });
  }
  // Steps that came too fast to be told one by one, and held-out losses, are read from time to time.
  refresh(metricsQuery(run.runId).queryKey, isOver(run) || before?.phase !== run.phase ? 500 : 8000);
  refresh(runEventsQuery(run.runId).queryKey, before?.phase === run.phase ? 2000 : 300);
}

function takeDataset(client: QueryClient, dataset: DatasetState): void {
  client.setQueryData(datasetQuery(dataset.datasetId).queryKey, dataset);
  client.setQueryData(datasetsQuery.queryKey, (known) => {
    if (known === undefined) return known;
    const isIt = ({ datasetId }: DatasetState): boolean => datasetId === dataset.datasetId;
    const isThere = known.pages.some(({ data }) => data.some(isIt));
    const changed = (data: DatasetState[], at: number): DatasetState[] => {
      if (dataset.status === "deleted") return data.filter((one) => !isIt(one));
      if (isThere) return data.map((one) => (isIt(one) ? dataset : one));
      return at === 0 ? [dataset, ...data] : data;
    };
    return { ...known, pages: known.pages.map((page, at) => ({ ...page, data: changed(page.data, at) })) };
  });
}
